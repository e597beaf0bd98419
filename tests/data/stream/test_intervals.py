"""Samples described by intervals, against the same samples listed one by one."""

import numpy as np
import pytest

from open_kandinsky.data.stream import permutation


def listed(some):
    return [(shard, at) for shard, start, stop in some.tolist() for at in range(start, stop)]


def drawn(seed):
    """Intervals of random shards, in random order."""
    rng = np.random.default_rng(seed)
    cuts = [(shard, *sorted(rng.integers(0, 9, 2))) for shard in range(6)]
    return permutation.shuffle_shards(np.array(cuts, dtype=np.int64), shards=6, seed=str(seed))


@pytest.mark.parametrize("seed", range(5))
def test_parts_follow_one_another(seed):
    some = drawn(seed)
    for of in (1, 2, 3, 7, 40):
        parts = [permutation.split(some, at, of) for at in range(of)]
        assert [one for part in parts for one in listed(part)] == listed(some)
        sizes = [permutation.total(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_a_number_is_a_place(seed):
    some = drawn(seed)
    numbers = np.arange(permutation.total(some))
    assert listed(permutation.locate(some, numbers)) == listed(some)
    for first in range(0, len(numbers), 3):
        assert listed(permutation.slice_numbers(some, first, first + 4)) == listed(some)[first : first + 4]
    found = [(shard, at) for shard, _, positions in permutation.by_shard(some) for at in positions.tolist()]
    assert found == listed(some)
    assert np.concatenate([numbers for _, numbers, _ in permutation.by_shard(some)]).tolist() == numbers.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_what_touches_is_joined(seed):
    some = drawn(seed)
    one_by_one = permutation.locate(some, np.random.default_rng(seed).permutation(permutation.total(some)))
    joined = permutation.merge([one_by_one[:5], one_by_one[5:]])
    assert listed(joined) == sorted(listed(some))
    assert len(joined) == sum(start < stop for _, start, stop in some.tolist())


def test_a_sample_in_two_intervals_is_our_mistake():
    with pytest.raises(AssertionError, match="in two"):
        permutation.merge([np.array([[0, 0, 4]]), np.array([[0, 3, 5]])])


def test_shards_are_shuffled_whole():
    orders = [
        permutation.shuffle_shards(permutation.all_samples([2] * 5), shards=5, seed=str(seed))[:, 0].tolist()
        for seed in range(300)
    ]
    places = np.array([np.argsort(order) for order in orders])
    assert np.abs(places.mean(0) - 2).max() < 0.4
