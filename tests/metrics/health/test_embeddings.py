"""Drawn embeddings against true ones: closed forms, and counting by hand."""

from itertools import permutations

import pytest
import torch

from open_kandinsky.metrics import health
from open_kandinsky.metrics.health import cosine, cosine_of_others, norm_ratio, ranks, retrieval, std_ratios


def rows(n, d=6, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_embeddings_find_themselves():
    x = rows(40)
    assert retrieval(3 * x, x, 1) == 1
    assert cosine(3 * x, x) == pytest.approx(1)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_permuted_embeddings_find_their_own_in_k_of_n(k):
    """The mean over all permutations is k / n exactly."""
    x = rows(4)
    found = [retrieval(x[list(order)], x, k) for order in permutations(range(4))]
    assert sum(found) / len(found) == pytest.approx(k / 4)


@pytest.mark.parametrize("k", [1, 5, 8])
def test_retrieval_is_what_sorting_finds(k):
    x, y = rows(50), rows(50, seed=1)
    nearest = torch.nn.functional.cosine_similarity(x[:, None], y[None], dim=2).argsort(1, descending=True)[:, :k]
    assert retrieval(x, y, k) == (nearest == torch.arange(50)[:, None]).any(1).double().mean()


def test_a_prior_that_always_says_the_same_finds_k_of_n():
    assert retrieval(rows(1).expand(20, -1), rows(20), 5) == pytest.approx(5 / 20)
    assert retrieval(rows(20), rows(1).expand(20, -1), 5) == pytest.approx(5 / 20)


def test_chunks_change_nothing(monkeypatch):
    x, y = rows(23), rows(23, seed=1)
    whole = ranks(x, y)
    monkeypatch.setattr(health, "CHUNK", 5)
    assert all(torch.equal(a, b) for a, b in zip(ranks(x, y), whole, strict=True))


def test_others_are_all_pairs_but_ones_own():
    x, y = rows(9), rows(9, seed=1)
    pairs = [float(torch.cosine_similarity(x[i], y[j], dim=0)) for i in range(9) for j in range(9) if i != j]
    assert cosine_of_others(x, y) == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)
    assert torch.tensor(cosine_of_others(x[:1], y[:1])).isnan(), "one row has no other"


def test_opposite_and_orthogonal():
    x = torch.eye(4)
    assert cosine(x, -x) == -1
    assert cosine_of_others(x, x) == 0


def test_drift_is_a_ratio_of_lengths_and_of_each_spread():
    y = rows(200)
    scale = torch.tensor([1.0, 2, 0.5, 1, 1, 0])
    assert norm_ratio(3 * y, y) == pytest.approx(3)
    assert norm_ratio(-y, y) == pytest.approx(1)
    torch.testing.assert_close(std_ratios(scale * y + 7, y), scale.double(), rtol=1e-5, atol=1e-6)


def test_a_number_that_is_none_shows():
    x = rows(5)
    x[2, 3] = float("nan")
    assert all(torch.tensor(f(x, rows(5))).isnan() for f in (cosine, cosine_of_others, norm_ratio))
    assert torch.tensor(retrieval(x, rows(5), 1)).isnan()
