"""KID and CMMD against their definitions, written out in float64."""

import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from open_kandinsky.metrics.kernel import cmmd, kid


def drawn(n, d, seed, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def off_diagonal(kernel):
    n = len(kernel)
    return (kernel.sum() - kernel.trace()) / (n * (n - 1))


def kid_by_definition(x, y):
    def kernel(a, b):
        return (a.double() @ b.double().T / a.shape[1] + 1) ** 3

    return float(off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean())


def gaussian(a, b):
    """The kernel that CMMD's authors write out, on embeddings of length 1."""
    a, b = (part.double() / part.double().norm(dim=1, keepdim=True) for part in (a, b))
    return torch.exp(-torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square() / (2 * 10**2))


def biased(x, y):
    return 1000 * float(gaussian(x, x).mean() + gaussian(y, y).mean() - 2 * gaussian(x, y).mean())


def unbiased(x, y):
    within = off_diagonal(gaussian(x, x)) + off_diagonal(gaussian(y, y))
    return 1000 * float(within - 2 * gaussian(x, y).mean())


def test_one_subset_of_everything_is_the_definition():
    x, y = drawn(80, 16, 0), drawn(80, 16, 1, shift=0.3)
    score = kid(x, y, seed=0, subsets=1, subset_size=80)
    assert score == pytest.approx((kid_by_definition(x, y), 0), rel=1e-12)


def test_torch_fidelity_loses_digits_in_float32_and_this_does_not():
    x, y = drawn(200, 32, 0, shift=30), drawn(200, 32, 1, shift=30)
    exact = kid_by_definition(x, y)
    options = {"kid_subsets": 1, "kid_subset_size": 200, "verbose": False}
    theirs = kid_features_to_metric(x, y, **options)["kernel_inception_distance_mean"]
    assert kid(x, y, seed=0, subsets=1, subset_size=200).mean == pytest.approx(exact, rel=1e-6)
    assert abs(theirs - exact) > 1e-3 * abs(exact)


def test_kid_of_one_distribution_is_zero_within_its_spread():
    score = kid(drawn(400, 16, 0), drawn(400, 16, 1), seed=0, subsets=50, subset_size=100)
    assert abs(score.mean) < score.std


def test_the_seed_decides_the_subsets():
    x, y = drawn(60, 8, 0), drawn(50, 8, 1)
    first, again, other = (kid(x, y, seed=seed, subsets=3, subset_size=20) for seed in (5, 5, 6))
    assert first == again != other


@pytest.mark.parametrize("size", [1, 51])
def test_a_subset_that_cannot_be_drawn_is_refused(size):
    with pytest.raises(ValueError, match=f"subsets of {size} .* 60 real and 50 generated; give subset_size between"):
        kid(drawn(60, 8, 0), drawn(50, 8, 1), seed=0, subset_size=size)


@pytest.mark.parametrize(("n", "m"), [(70, 70), (70, 45)])
def test_cmmd_is_the_definition(n, m):
    x, y = drawn(n, 24, 0), 5 * drawn(m, 24, 1, shift=0.4)
    score = cmmd(x, y)
    assert score.value == pytest.approx(biased(x, y), rel=1e-5)
    assert score.unbiased == pytest.approx(unbiased(x, y), rel=1e-5)


@pytest.mark.parametrize("chunk", [3, 33, 1000])
def test_chunks_do_not_matter(chunk):
    x, y = drawn(70, 24, 0), drawn(45, 24, 1, shift=0.1)
    assert cmmd(x, y, chunk=chunk) == pytest.approx(cmmd(x, y, chunk=70), rel=1e-5)


def test_a_set_is_at_no_distance_from_itself():
    x = drawn(60, 24, 0)
    score = cmmd(x, x.flip(0), chunk=16)
    assert score.value == pytest.approx(0, abs=1e-6)
    assert score.unbiased < 0


def test_cmmd_is_symmetric_and_blind_to_length():
    x, y = drawn(60, 24, 0), drawn(40, 24, 1, shift=0.2)
    assert cmmd(x, y) == pytest.approx(cmmd(y, 3 * x), rel=1e-5)


def test_what_has_no_distance_is_refused():
    with pytest.raises(ValueError, match="1 real and 40 generated"):
        cmmd(drawn(1, 24, 0), drawn(40, 24, 1))
    x = drawn(40, 24, 0)
    x[1, 2] = torch.inf
    for statistic in (cmmd, lambda *sets: kid(*sets, seed=0, subset_size=10)):
        with pytest.raises(ValueError, match="1 of 960 numbers"):
            statistic(drawn(40, 24, 1), x)
