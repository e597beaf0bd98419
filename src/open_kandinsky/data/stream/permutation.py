"""The order in which a shuffle buffer gives samples out, known without the samples.

Which samples of a source, said shortly: rows of a shard, its first position, and the position after the last.

The samples of some spans, read one after another, have the numbers 0, 1, ...: a sample is known by its number in the
spans, or by its shard and position.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Int64

BLOCK = 1 << 16


def randoms(seed: str) -> np.random.RandomState:
    """Random numbers that are the same for ever: numpy has frozen this generator and no other (NEP 19)."""
    return np.random.RandomState(np.frombuffer(hashlib.sha256(seed.encode()).digest(), dtype="<u4"))


@dataclass(frozen=True, kw_only=True)
class Permutation:
    """Samples 0 to `n` - 1 through a buffer of `buffer` slots.

    The first samples fill the slots. Then a slot is drawn, what it holds is given out, and the next sample takes its
    place. When no sample comes any more, what the slots hold is given out in any order.
    """

    n: int
    buffer: int
    seed: str

    @property
    def slots(self) -> int:
        return min(self.buffer, self.n)

    def given(self, taken: int) -> Iterator[int]:
        """The samples in the order in which they are given out, without the first `taken`."""
        draws, slots, coming = self.after(taken)
        held = slots.tolist()
        while coming < self.n:
            for slot in drawn(draws, min(BLOCK, self.n - coming), len(held)).tolist():
                yield held[slot]
                held[slot] = coming
                coming += 1
        yield from self.ending(draws, np.array(held, dtype=np.int64), taken).tolist()

    def left(self, taken: int) -> tuple[Int64[np.ndarray, " _"], int]:
        """What remains after `taken` were given out: the samples in the slots, and all from another one on."""
        draws, slots, coming = self.after(taken)
        return (self.ending(draws, slots, taken) if coming == self.n else slots), coming

    def after(self, taken: int) -> tuple[np.random.RandomState, Int64[np.ndarray, " _"], int]:
        """The generator, the slots, and the next sample to come in. Takes no longer than drawing the numbers does."""
        draws, slots = randoms(self.seed), np.arange(self.slots)
        refilled = min(taken, self.n - self.slots)
        for first in range(0, refilled, BLOCK):
            coming = self.slots + np.arange(first, min(first + BLOCK, refilled))
            np.maximum.at(slots, drawn(draws, len(coming), self.slots), coming)  # the last one in a slot stays
        return draws, slots, self.slots + refilled

    def ending(
        self, draws: np.random.RandomState, slots: Int64[np.ndarray, " _"], taken: int
    ) -> Int64[np.ndarray, " _"]:
        """The last samples in their order, without those already given out."""
        order = np.argsort(draws.random_sample(self.slots), kind="stable")
        return slots[order[max(0, taken - (self.n - self.slots)) :]]


def drawn(draws: np.random.RandomState, count: int, slots: int) -> Int64[np.ndarray, " count"]:
    """The next `count` slots."""
    return (draws.random_sample(count) * slots).astype(np.int64)


Numbers = Int64[np.ndarray, " _"]
Intervals = Int64[np.ndarray, "_ 3"]


def whole(counts: Sequence[int]) -> Intervals:
    """Every sample of every shard."""
    shards = np.arange(len(counts))
    return np.stack([shards, np.zeros_like(shards), np.asarray(counts, dtype=np.int64)], axis=1)


def lengths(spans: Intervals) -> Numbers:
    """How many samples each span holds."""
    return spans[:, 2] - spans[:, 1]


def size(spans: Intervals) -> int:
    """How many samples there are."""
    return int(lengths(spans).sum())


def shuffled(spans: Intervals, *, shards: int, seed: str) -> Intervals:
    """Shards in an order that `seed` decides; what is of one of the `shards` stays together, in its own order."""
    turn = randoms(seed).random_sample(shards)[spans[:, 0]]
    return spans[np.lexsort((spans[:, 1], spans[:, 0], turn))]


def between(spans: Intervals, first: int, last: int) -> Intervals:
    """The samples with the numbers `first` to `last` - 1."""
    length = lengths(spans)
    ends = length.cumsum()
    cut = spans.copy()
    cut[:, 1] += np.clip(first - (ends - length), 0, length)
    cut[:, 2] -= np.clip(ends - last, 0, length)
    return cut[cut[:, 1] < cut[:, 2]]


def part(spans: Intervals, at: int, of: int) -> Intervals:
    """One of `of` equal parts that follow one another: none is longer than another by more than one sample."""
    n = size(spans)
    return between(spans, at * n // of, (at + 1) * n // of)


def located(spans: Intervals, numbers: Numbers) -> Intervals:
    """The samples with these numbers, each a span of its own."""
    length = lengths(spans)
    ends = length.cumsum()
    row = np.searchsorted(ends, numbers, side="right")
    position = spans[row, 1] + numbers - (ends - length)[row]
    return np.stack([spans[row, 0], position, position + 1], axis=1)


def merged(many: Sequence[Intervals]) -> Intervals:
    """All of them, by shard and position, with what touches joined. No sample may be in two."""
    spans = np.concatenate(many)
    spans = spans[spans[:, 1] < spans[:, 2]]
    spans = spans[np.lexsort((spans[:, 1], spans[:, 0]))]
    same = spans[1:, 0] == spans[:-1, 0]
    assert not (same & (spans[1:, 1] < spans[:-1, 2])).any(), "a sample is in two spans"
    apart = ~(same & (spans[1:, 1] == spans[:-1, 2]))
    begins, ends = np.concatenate([[True], apart])[: len(spans)], np.concatenate([apart, [True]])[: len(spans)]
    return np.concatenate([spans[begins, :2], spans[ends, 2:]], axis=1)


def by_shard(spans: Intervals) -> Iterator[tuple[int, Numbers, Numbers]]:
    """For each shard in turn: its number, and the numbers and positions of the samples in it."""
    first = 0
    for shard, rows in groupby(spans.tolist(), key=lambda row: row[0]):
        positions = np.concatenate([np.arange(start, stop) for _, start, stop in rows])
        yield shard, np.arange(first, first + len(positions)), positions
        first += len(positions)
