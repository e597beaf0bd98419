"""The order of samples in an epoch, computed without reading any of them.

Samples are described by intervals: rows of a shard, its first position, and the position after the last. Read one
after another, the samples of some intervals have the numbers 0, 1, 2, ...; so a sample is identified by its number, or
by its shard and position. `Permutation` is the order in which a shuffle buffer emits numbered samples.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Int64

BLOCK = 1 << 16

Numbers = Int64[np.ndarray, " _"]
Intervals = Int64[np.ndarray, "_ 3"]


def random_state(seed: str) -> np.random.RandomState:
    """Random numbers that never change: numpy has frozen this generator and no other (NEP 19)."""
    return np.random.RandomState(np.frombuffer(hashlib.sha256(seed.encode()).digest(), dtype="<u4"))


@dataclass(frozen=True, kw_only=True)
class Permutation:
    """Samples 0 to `n` - 1 through a shuffle buffer of `buffer` slots.

    The first samples fill the slots. Then a slot is drawn, its sample is emitted, and the next sample takes the slot.
    After the last sample has entered, the slots are emitted in random order.
    """

    n: int
    buffer: int
    seed: str

    @property
    def slots(self) -> int:
        return min(self.buffer, self.n)

    def iterate(self, start: int) -> Iterator[int]:
        """The samples in the order in which they are emitted, without the first `start`."""
        rng, slots, entering = self.state_at(start)
        buffered = slots.tolist()
        while entering < self.n:
            for slot in random_slots(rng, min(BLOCK, self.n - entering), len(buffered)).tolist():
                yield buffered[slot]
                buffered[slot] = entering
                entering += 1
        yield from self.final_order(rng, np.array(buffered, dtype=np.int64), start).tolist()

    def remaining(self, start: int) -> tuple[Numbers, int]:
        """After `start` emitted samples: the samples in the slots, and the first of those that have not entered."""
        rng, slots, entering = self.state_at(start)
        return (self.final_order(rng, slots, start) if entering == self.n else slots), entering

    def state_at(self, start: int) -> tuple[np.random.RandomState, Numbers, int]:
        """The generator, the slots and the next sample to enter; takes no longer than drawing the numbers does."""
        rng, slots = random_state(self.seed), np.arange(self.slots)
        refilled = min(start, self.n - self.slots)
        for first in range(0, refilled, BLOCK):
            entering = self.slots + np.arange(first, min(first + BLOCK, refilled))
            np.maximum.at(slots, random_slots(rng, len(entering), self.slots), entering)  # the last to enter stays
        return rng, slots, self.slots + refilled

    def final_order(self, rng: np.random.RandomState, slots: Numbers, start: int) -> Numbers:
        """The last samples in the order in which they are emitted, without those before number `start` of the run."""
        order = np.argsort(rng.random_sample(self.slots), kind="stable")
        return slots[order[max(0, start - (self.n - self.slots)) :]]


def random_slots(rng: np.random.RandomState, count: int, slots: int) -> Int64[np.ndarray, " count"]:
    """The next `count` slots."""
    return (rng.random_sample(count) * slots).astype(np.int64)


def all_samples(counts: Sequence[int]) -> Intervals:
    """Every sample of every shard."""
    shards = np.arange(len(counts))
    return np.stack([shards, np.zeros_like(shards), np.asarray(counts, dtype=np.int64)], axis=1)


def lengths(intervals: Intervals) -> Numbers:
    """How many samples each interval holds."""
    return intervals[:, 2] - intervals[:, 1]


def total(intervals: Intervals) -> int:
    """How many samples there are."""
    return int(lengths(intervals).sum())


def shuffle_shards(intervals: Intervals, *, shards: int, seed: str) -> Intervals:
    """The `shards` in an order that `seed` decides; the intervals of one shard stay together, in their order."""
    turn = random_state(seed).random_sample(shards)[intervals[:, 0]]
    return intervals[np.lexsort((intervals[:, 1], intervals[:, 0], turn))]


def slice_numbers(intervals: Intervals, first: int, last: int) -> Intervals:
    """The samples with the numbers `first` to `last` - 1."""
    length = lengths(intervals)
    ends = length.cumsum()
    cut = intervals.copy()
    cut[:, 1] += np.clip(first - (ends - length), 0, length)
    cut[:, 2] -= np.clip(ends - last, 0, length)
    return cut[cut[:, 1] < cut[:, 2]]


def split(intervals: Intervals, part: int, parts: int) -> Intervals:
    """One of `parts` consecutive parts, whose sizes differ by at most one sample."""
    n = total(intervals)
    return slice_numbers(intervals, part * n // parts, (part + 1) * n // parts)


def locate(intervals: Intervals, numbers: Numbers) -> Intervals:
    """The samples with these numbers, each as an interval of its own."""
    length = lengths(intervals)
    ends = length.cumsum()
    row = np.searchsorted(ends, numbers, side="right")
    position = intervals[row, 1] + numbers - (ends - length)[row]
    return np.stack([intervals[row, 0], position, position + 1], axis=1)


def merge(parts: Sequence[Intervals]) -> Intervals:
    """The union by shard and position, adjacent intervals joined. No sample may be in two of them."""
    intervals = np.concatenate(parts)
    intervals = intervals[intervals[:, 1] < intervals[:, 2]]
    intervals = intervals[np.lexsort((intervals[:, 1], intervals[:, 0]))]
    same = intervals[1:, 0] == intervals[:-1, 0]
    assert not (same & (intervals[1:, 1] < intervals[:-1, 2])).any(), "a sample is in two intervals"
    apart = ~(same & (intervals[1:, 1] == intervals[:-1, 2]))
    begins, ends = (np.concatenate(mask)[: len(intervals)] for mask in (([True], apart), (apart, [True])))
    return np.concatenate([intervals[begins, :2], intervals[ends, 2:]], axis=1)


def by_shard(intervals: Intervals) -> Iterator[tuple[int, Numbers, Numbers]]:
    """For each shard in turn: its index, and the numbers and positions of its samples."""
    first = 0
    for shard, rows in groupby(intervals.tolist(), key=lambda row: row[0]):
        positions = np.concatenate([np.arange(start, stop) for _, start, stop in rows])
        yield shard, np.arange(first, first + len(positions)), positions
        first += len(positions)
