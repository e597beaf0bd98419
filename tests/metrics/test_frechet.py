"""The Frechet distance against closed forms, other formulas, and itself."""

import numpy as np
import pytest
import torch
from scipy import linalg

from open_kandinsky.metrics.frechet import FrechetDistance, frechet_distance, frechet_from_moments, moments


def drawn(n, d, seed, shift=0.0):
    """Correlated features."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + shift


def rotation(d):
    generator = torch.Generator().manual_seed(9)
    return torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q


def by_product(x, y, trace_of_root):
    (mean_x, cov_x), (mean_y, cov_y) = moments(x), moments(y)
    apart = (mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace()
    return float(apart) - 2 * trace_of_root((cov_x @ cov_y).numpy())


def by_eigenvalues(product):
    return float(np.sqrt(np.linalg.eigvals(product).astype(complex)).real.sum())


def by_matrix_root(product):
    return float(np.trace(np.asarray(linalg.sqrtm(product))).real)


def test_commuting_gaussians_have_a_closed_form():
    q = rotation(16)
    a, b = torch.linspace(0.1, 2, 16, dtype=torch.float64), torch.linspace(3, 0.2, 16, dtype=torch.float64)
    mean_x, mean_y = torch.zeros(16, dtype=torch.float64), torch.linspace(-1, 1, 16, dtype=torch.float64)
    expected = (mean_y.square() + (a.sqrt() - b.sqrt()).square()).sum()
    distance = frechet_from_moments(mean_x, q * a @ q.T, mean_y, q * b @ q.T)
    assert distance == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("d", [128, pytest.param(2048, marks=pytest.mark.slow)])
def test_a_shift_by_one_is_as_far_as_there_are_dimensions(d):
    one, cov = torch.ones(d), torch.eye(d)
    assert frechet_from_moments(0 * one, cov, one, cov) == d


@pytest.mark.parametrize(("n", "d"), [(300, 20), (20, 300), (500, 2048)])
def test_a_set_is_at_no_distance_from_itself(n, d):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    assert abs(frechet_distance(x, x)) < 1e-10


@pytest.mark.parametrize(("n", "m"), [(200, 150), (10, 150), (10, 20)], ids=["many", "few and many", "few"])
class TestSymmetries:
    def test_it_is_symmetric(self, n, m):
        x, y = drawn(n, 30, 0), drawn(m, 30, 1, shift=0.3)
        assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-12)

    def test_a_rotation_leaves_it_alone(self, n, m):
        x, y, q = drawn(n, 30, 0), drawn(m, 30, 1, shift=0.3), rotation(30)
        assert frechet_distance(x @ q, y @ q) == pytest.approx(frechet_distance(x, y), rel=1e-11)

    def test_a_scale_comes_out_squared(self, n, m):
        x, y = drawn(n, 30, 0), drawn(m, 30, 1, shift=0.3)
        assert frechet_distance(3 * x, 3 * y) == pytest.approx(9 * frechet_distance(x, y), rel=1e-12)

    def test_features_and_their_moments_agree(self, n, m):
        x, y = drawn(n, 30, 0), drawn(m, 30, 1, shift=0.3)
        assert frechet_from_moments(*moments(x), *moments(y)) == pytest.approx(frechet_distance(x, y), abs=1e-8)

    def test_dimensions_without_variance_add_only_their_means(self, n, m):
        x, y = drawn(n, 30, 0), drawn(m, 30, 1)
        flat_x, flat_y = torch.full((n, 5), 1.5, dtype=x.dtype), torch.full((m, 5), 0.5, dtype=y.dtype)
        padded = frechet_distance(torch.cat([x, flat_x], 1), torch.cat([y, flat_y], 1))
        assert padded == pytest.approx(frechet_distance(x, y) + 5, abs=1e-10)


@pytest.mark.parametrize("trace_of_root", [by_eigenvalues, by_matrix_root])
def test_it_agrees_with_the_root_of_the_product_where_that_is_well_conditioned(trace_of_root):
    x, y = drawn(5000, 12, 3), drawn(4000, 12, 4, shift=0.2)
    assert frechet_distance(x, y) == pytest.approx(by_product(x, y, trace_of_root), rel=1e-9)


def test_moments_are_numpys():
    x = drawn(50, 8, 5)
    mean, cov = moments(x.float())
    assert mean.dtype == cov.dtype == torch.float64
    np.testing.assert_allclose(mean, x.float().double().numpy().mean(0), atol=1e-15)
    np.testing.assert_allclose(cov, np.cov(x.float().double().numpy(), rowvar=False), atol=1e-14)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(bad):
    x = drawn(10, 4, 0)
    y = x.clone()
    y[3, 2] = bad
    with pytest.raises(ValueError, match="1 of 40 numbers"):
        frechet_distance(x, y)
    with pytest.raises(ValueError, match="NaN or infinite"):
        frechet_from_moments(*moments(x), y[3], moments(x).cov)


def test_one_example_is_refused():
    with pytest.raises(ValueError, match="1 examples"):
        moments(drawn(1, 4, 0))


def filled(*orders):
    metric = FrechetDistance(name="frechet_toy", dim=6)
    x, y = drawn(40, 6, 0).float(), drawn(30, 6, 1).float()
    y[7] = y[8]
    for real, order in zip((True, False), orders, strict=True):
        for part in (x if real else y)[order].split(7):
            metric.update(part, real=real)
    return metric


def test_the_metric_does_not_depend_on_batches_or_on_who_saw_what():
    generator = torch.Generator().manual_seed(0)
    straight = filled(torch.arange(40), torch.arange(30)).compute()
    shuffled = filled(torch.randperm(40, generator=generator), torch.randperm(30, generator=generator)).compute()
    assert straight == shuffled
    assert straight["frechet_toy"] == pytest.approx(frechet_distance(drawn(40, 6, 0), filled_generated()), rel=1e-5)


def gather(rank, world, rendezvous, out):
    """One process's share of the examples: all of them fall to the processes after the first."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    metric = FrechetDistance(name="frechet_toy", dim=6)
    if rank:
        metric.update(drawn(40, 6, 0).float()[rank - 1 :: world - 1], real=True)
        metric.update(filled_generated().float()[rank - 1 :: world - 1], real=False)
    (out / f"{rank}.txt").write_text(metric.compute()["frechet_toy"].hex())
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_the_metric_does_not_depend_on_the_number_of_processes(tmp_path):
    args = (3, tmp_path / "rendezvous", tmp_path)
    torch.multiprocessing.start_processes(gather, args, nprocs=3, start_method="fork")  # spawn could not import this
    said = {path.read_text() for path in tmp_path.glob("*.txt")}
    assert said == {filled(torch.arange(40), torch.arange(30)).compute()["frechet_toy"].hex()}


def filled_generated():
    y = drawn(30, 6, 1)
    y[7] = y[8]
    return y


def test_the_metric_refuses_features_of_another_width_and_no_features():
    metric = FrechetDistance(name="frechet_toy", dim=6)
    with pytest.raises(ValueError, match="5 wide, 6"):
        metric.update(drawn(10, 5, 0), real=True)
    metric.update(drawn(10, 6, 0), real=True)
    with pytest.raises(ValueError, match="0 examples"):
        metric.compute()


def test_roots_by_either_way_give_one_distance():
    """Four more dimensions, copies of others, make a covariance singular and leave only the eigenvectors."""
    x, y = drawn(400, 30, 0), drawn(300, 30, 1, shift=0.3)
    copies = torch.eye(30, 34, dtype=x.dtype)
    copies[:4, 30:] = torch.eye(4, dtype=x.dtype)
    twice = torch.tensor([2.0] * 4 + [1.0] * 26, dtype=x.dtype).sqrt()  # what a dimension and its copy amount to
    singular, regular = frechet_distance(x @ copies, y @ copies), frechet_distance(x * twice, y * twice)
    assert singular == pytest.approx(regular, rel=1e-11)
