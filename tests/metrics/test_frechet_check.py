"""Two algorithms for one distance: where they agree, where only one of them is right, and what a disagreement says."""

import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from open_kandinsky.metrics import frechet
from open_kandinsky.metrics.frechet import Moments, cross_checked, frechet_by_eigenvalues, frechet_distance, moments


def drawn(n, d, seed, shift=0.0):
    """Correlated features, float32."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator) / d**0.5
    return torch.randn(n, d, generator=generator) @ mix + shift


@pytest.mark.parametrize("d", [64, pytest.param(2048, marks=pytest.mark.slow)])
def test_a_shift_by_one_is_as_far_as_there_are_dimensions(d):
    zero, one, cov = (part.double() for part in (torch.zeros(d), torch.ones(d), torch.eye(d)))
    assert frechet_by_eigenvalues(Moments(zero, cov), Moments(one, cov)) == d


@pytest.mark.parametrize(("n", "m"), [(400, 300), (30, 300), (30, 20)], ids=["many", "few and many", "few"])
def test_where_they_agree_it_is_the_distance(n, m):
    x, y = drawn(n, 50, 0), drawn(m, 50, 1, shift=0.1)
    assert cross_checked(x, y) == pytest.approx(frechet_distance(x, y), rel=1e-12)
    assert frechet_by_eigenvalues(moments(x), moments(y)) == pytest.approx(frechet_distance(x, y), abs=1e-5)


@pytest.mark.parametrize(("n", "d"), [(300, 40), (40, 300), pytest.param(500, 2048, marks=pytest.mark.slow)])
def test_a_distance_of_nothing_is_no_disagreement(n, d):
    x = drawn(n, d, 0)
    assert abs(cross_checked(x, x)) < 1e-10


def test_of_few_examples_only_the_singular_values_are_exact():
    x = drawn(40, 300, 0)
    by_singular, by_eigen = frechet_distance(x, x), frechet_by_eigenvalues(moments(x), moments(x))
    assert abs(by_singular) < 1e-10 < 1e-8 < abs(by_eigen)


def test_torch_fidelitys_own_moments_are_right_to_six_digits_only():
    x, y = drawn(500, 20, 0, shift=100), drawn(500, 20, 1, shift=100.5)
    stats = [fid_features_to_statistics(part) for part in (x, y)]
    theirs = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    exact = frechet_distance(x, y)
    assert frechet_by_eigenvalues(moments(x), moments(y)) == pytest.approx(exact, rel=1e-9)
    assert abs(theirs - exact) > 1e-7 * exact


def test_a_disagreement_gives_both_numbers_and_the_spectra(monkeypatch):
    x, y = drawn(300, 30, 0), drawn(200, 30, 1, shift=0.1)
    right = frechet_distance(x, y)
    monkeypatch.setattr(frechet, "frechet_by_eigenvalues", lambda *_: 1.001 * right)
    with pytest.raises(FloatingPointError) as error:
        cross_checked(x, y)
    assert f"{right:.8f}"[:8] in str(error.value) and f"{1.001 * right:.8f}"[:8] in str(error.value)
    assert str(error.value).count("rank 30 of 30") == 2
    monkeypatch.setattr(frechet, "frechet_by_eigenvalues", lambda *_: 1.00001 * right)
    assert cross_checked(x, y) == pytest.approx(right)
