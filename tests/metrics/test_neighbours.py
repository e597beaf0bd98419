"""Precision, recall, density and coverage against their definitions, closed forms and torch-fidelity."""

import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from open_kandinsky.metrics.neighbours import Neighbours, neighbours


def drawn(n, d, seed, spread=1.0, shift=0.0):
    return spread * torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def by_definition(real, generated, k):
    """With every distance at once, taken from differences in float64."""
    real, generated = real.double(), generated.double()

    def distances(a, b):
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")

    radius_real = distances(real, real).sort(1).values[:, k]  # the first is the example itself
    radius_generated = distances(generated, generated).sort(1).values[:, k]
    across = distances(real, generated)
    in_real, in_generated = across <= radius_real[:, None], across <= radius_generated
    found = in_real.any(0), in_generated.any(1), in_real.double().sum(0) / k, in_real.any(1)
    return Neighbours(*(float(part.double().mean()) for part in found))


def by_torch_fidelity(real, generated, **options):
    theirs = prc_features_to_metric(generated, real, verbose=False, **options)
    return theirs["precision"], theirs["recall"]


SETS = {
    "even": (drawn(90, 8, 0), drawn(90, 8, 1, shift=0.3)),
    "uneven": (drawn(90, 8, 0), drawn(50, 8, 1, spread=0.6)),
    "far from 0": (drawn(60, 8, 0, shift=100), drawn(50, 8, 1, shift=100)),
}


@pytest.mark.parametrize("sets", SETS)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_it_is_the_definition(sets, k):
    assert neighbours(*SETS[sets], k=k) == pytest.approx(by_definition(*SETS[sets], k), abs=1e-12)


@pytest.mark.parametrize("chunk", [3, 17, 64])
def test_chunks_do_not_matter(chunk):
    assert neighbours(*SETS["uneven"], chunk=chunk) == neighbours(*SETS["uneven"], chunk=1000)


def test_precision_is_the_generated_ones_and_recall_the_real_ones():
    real, narrow = drawn(300, 2, 0, spread=10), drawn(300, 2, 1, spread=0.5)
    collapsed, exaggerated = neighbours(real, narrow), neighbours(narrow, real)
    assert collapsed.precision > 0.95 and collapsed.recall < 0.2
    assert exaggerated.precision < 0.2 and exaggerated.recall > 0.95


def test_on_a_line_it_can_be_counted():
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0], [100.0], [101.0]])
    generated = torch.tensor([[0.25], [0.6], [60.0], [2.75]])
    counted = neighbours(real, generated, k=1)
    assert counted.precision == 3 / 4  # all but 60
    assert counted.recall == 1  # 60's ball reaches from 2.75 to 117.25, 2.75's from 0.6 to 4.9, 0.25's over 0
    assert counted.coverage == 4 / 6  # 100 and 101 have nobody near
    assert counted.density == pytest.approx(6 / 4)


@pytest.mark.parametrize("sets", ["even", "uneven"])
def test_torch_fidelity_says_the_same_with_generated_first(sets):
    real, generated = SETS[sets]
    ours = neighbours(real, generated)
    assert ours[:2] == pytest.approx(by_torch_fidelity(real, generated), abs=1e-6)
    assert ours.precision != ours.recall


def test_torch_fidelity_loses_neighbours_where_the_mean_is_large_and_this_does_not():
    real, generated = drawn(60, 32, 0, shift=2000), drawn(60, 32, 1, shift=2000)
    exact = by_definition(real, generated, 3)
    assert neighbours(real, generated) == pytest.approx(exact, abs=1e-12)
    assert by_torch_fidelity(real, generated) != pytest.approx(exact[:2], abs=1e-6)


def test_a_set_covers_itself():
    x = drawn(50, 8, 0)
    found = neighbours(x, x.flip(0))
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)


def test_examples_without_enough_neighbours_and_numbers_that_are_none_are_refused():
    with pytest.raises(ValueError, match="50 real and 3 generated examples have no 3-th neighbour"):
        neighbours(drawn(50, 8, 0), drawn(3, 8, 1))
    x = drawn(50, 8, 0)
    x[0, 0] = torch.nan
    with pytest.raises(ValueError, match="1 of 400 numbers"):
        neighbours(x, drawn(50, 8, 1))
