"""What a shuffle buffer gives out, against one that is filled, drawn from and refilled."""

import numpy as np
import pytest

from open_kandinsky.data.stream import permutation
from open_kandinsky.data.stream.permutation import Permutation, random_state

CASES = [(0, 3), (1, 1), (1, 5), (7, 1), (7, 3), (7, 7), (7, 8), (40, 6), (100, 30)]


def by_hand(n, buffer, seed):
    """A buffer of samples: fill it, give a random one out, take the next one in; empty it in random order."""
    draws, samples = random_state(seed), iter(range(n))
    held = [next(samples) for _ in range(min(n, buffer))]
    given = []
    for sample in samples:
        slot = int(draws.random_sample() * len(held))
        given.append(held[slot])
        held[slot] = sample
    return given + [held[slot] for slot in np.argsort(draws.random_sample(len(held)), kind="stable")]


@pytest.mark.parametrize(("n", "buffer"), CASES)
def test_given_out_as_by_a_buffer(n, buffer, monkeypatch):
    monkeypatch.setattr(permutation, "BLOCK", 7)
    whole = list(Permutation(n=n, buffer=buffer, seed="a").iterate(0))
    assert whole == by_hand(n, buffer, "a")
    assert sorted(whole) == list(range(n))


@pytest.mark.parametrize(("n", "buffer"), CASES)
def test_any_number_can_be_passed_over(n, buffer, monkeypatch):
    monkeypatch.setattr(permutation, "BLOCK", 7)
    order = Permutation(n=n, buffer=buffer, seed="a")
    whole = list(order.iterate(0))
    for taken in range(n + 1):
        assert list(order.iterate(taken)) == whole[taken:]
        held, coming = order.remaining(taken)
        assert sorted([*held.tolist(), *range(coming, n)]) == sorted(whole[taken:])
        assert coming == min(n, taken + min(buffer, n)), "no more is read than the buffer holds"


def test_a_slot_of_one_leaves_the_order():
    assert list(Permutation(n=9, buffer=1, seed="a").iterate(0)) == list(range(9))


def test_each_sample_comes_early_and_late():
    places = np.array([np.argsort(list(Permutation(n=8, buffer=8, seed=str(s)).iterate(0))) for s in range(400)])
    assert np.abs(places.mean(0) - 3.5).max() < 0.5


def test_the_random_numbers_stay_what_they_are():
    """A checkpoint of today is resumed by the programs of tomorrow."""
    assert list(Permutation(n=10, buffer=4, seed="0/0/0/0").iterate(0)) == [0, 2, 5, 4, 1, 3, 9, 6, 7, 8]
