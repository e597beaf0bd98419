"""Bins, codes and rows: sums that add up, however the examples are split."""

import math

import pytest
import torch

from open_kandinsky.metrics.health import BinnedMean, CodeUsage, FeatureTable


def draws(n=500, T=1000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, generator=generator), torch.randint(T, (n,), generator=generator)


def test_bins_part_the_timesteps():
    metric = BinnedMean(bins=10, T=1000)
    metric.update(torch.arange(1000.0), torch.arange(1000))
    assert metric.n.tolist() == [100] * 10
    assert metric.compute() == {f"{a:03}-{a + 99:03}": a + 49.5 for a in range(0, 1000, 100)}


@pytest.mark.parametrize(("bins", "T"), [(3, 10), (7, 1000), (4, 4), (1, 50)])
def test_a_name_says_what_falls_into_its_bin(bins, T):
    metric = BinnedMean(bins=bins, T=T)
    spans = [tuple(map(int, name.split("-"))) for name in metric.names()]
    assert [t for a, b in spans for t in range(a, b + 1)] == list(range(T))
    for (a, b), at in zip(spans, range(bins), strict=True):
        one = BinnedMean(bins=bins, T=T)
        one.update(torch.ones(b - a + 1), torch.arange(a, b + 1))
        assert one.n.nonzero().flatten().tolist() == [at] and int(one.n[at]) == b - a + 1


def test_the_bins_weighted_by_their_counts_are_the_mean():
    values, t = draws()
    metric = BinnedMean(bins=10, T=1000)
    for part in (slice(0, 7), slice(7, 300), slice(300, 500)):
        metric.update(values[part], t[part])
    means = torch.tensor(list(metric.compute().values()))
    assert float((means * metric.n).sum() / metric.n.sum()) == pytest.approx(float(values.mean()), rel=1e-6)


def test_an_empty_bin_is_not_a_zero():
    metric = BinnedMean(bins=2, T=10)
    metric.update(torch.ones(1), torch.tensor([7]))
    assert metric.compute() == {"5-9": 1.0}


@pytest.mark.parametrize("bins", [0, 11])
def test_bins_without_a_timestep_are_refused(bins):
    with pytest.raises(ValueError, match=f"bins={bins} of T=10"):
        BinnedMean(bins=bins, T=10)


def test_codes_all_alike_and_one_alone():
    even, one = CodeUsage(codes=8), CodeUsage(codes=8)
    even.update(torch.arange(8).repeat(3).reshape(2, 3, 4))
    one.update(torch.full((2, 3, 4), 5))
    assert even.compute() == {"codes_used": 1.0, "code_perplexity": pytest.approx(8)}
    assert one.compute() == {"codes_used": 1 / 8, "code_perplexity": 1.0}


def test_codes_of_batches_are_those_of_the_set():
    """Half of the codes in one batch, the other half in the next: the set uses all."""
    metric = CodeUsage(codes=4)
    metric.update(torch.tensor([0, 1]))
    metric.update(torch.tensor([2, 3]))
    assert metric.compute()["code_perplexity"] == pytest.approx(4)
    metric.update(torch.tensor([0, 0, 0, 0]))
    p = torch.tensor([5, 1, 1, 1]) / 8
    assert metric.compute()["code_perplexity"] == pytest.approx(math.exp(-float((p * p.log()).sum())), rel=1e-6)


def test_rows_stay_together():
    metric = FeatureTable(columns=("a", "b"), dim=3)
    a, b = torch.randn(7, 3), torch.randn(7, 3)
    for part in (slice(0, 4), slice(4, 7)):
        metric.update(a=a[part], b=b[part])
    found = metric.compute()
    assert torch.equal(found["a"], a) and torch.equal(found["b"], b)
