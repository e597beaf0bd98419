"""Which samples of a source, said shortly: rows of a shard, its first position, and the position after the last.

The samples of some spans, read one after another, have the numbers 0, 1, ...: a sample is known by its number in the
spans, or by its shard and position.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from jaxtyping import Int64

from open_kandinsky.data.streaming.permutation import randoms

Numbers = Int64[np.ndarray, " _"]
Spans = Int64[np.ndarray, "_ 3"]


def whole(counts: Sequence[int]) -> Spans:
    """Every sample of every shard."""
    shards = np.arange(len(counts))
    return np.stack([shards, np.zeros_like(shards), np.asarray(counts, dtype=np.int64)], axis=1)


def lengths(spans: Spans) -> Numbers:
    """How many samples each span holds."""
    return spans[:, 2] - spans[:, 1]


def size(spans: Spans) -> int:
    """How many samples there are."""
    return int(lengths(spans).sum())


def shuffled(spans: Spans, *, shards: int, seed: str) -> Spans:
    """Shards in an order that `seed` decides; what is of one of the `shards` stays together, in its own order."""
    turn = randoms(seed).random_sample(shards)[spans[:, 0]]
    return spans[np.lexsort((spans[:, 1], spans[:, 0], turn))]


def between(spans: Spans, first: int, last: int) -> Spans:
    """The samples with the numbers `first` to `last` - 1."""
    length = lengths(spans)
    ends = length.cumsum()
    cut = spans.copy()
    cut[:, 1] += np.clip(first - (ends - length), 0, length)
    cut[:, 2] -= np.clip(ends - last, 0, length)
    return cut[cut[:, 1] < cut[:, 2]]


def part(spans: Spans, at: int, of: int) -> Spans:
    """One of `of` equal parts that follow one another: none is longer than another by more than one sample."""
    n = size(spans)
    return between(spans, at * n // of, (at + 1) * n // of)


def located(spans: Spans, numbers: Numbers) -> Spans:
    """The samples with these numbers, each a span of its own."""
    length = lengths(spans)
    ends = length.cumsum()
    row = np.searchsorted(ends, numbers, side="right")
    position = spans[row, 1] + numbers - (ends - length)[row]
    return np.stack([spans[row, 0], position, position + 1], axis=1)


def merged(many: Sequence[Spans]) -> Spans:
    """All of them, by shard and position, with what touches joined. No sample may be in two."""
    spans = np.concatenate(many)
    spans = spans[spans[:, 1] < spans[:, 2]]
    spans = spans[np.lexsort((spans[:, 1], spans[:, 0]))]
    same = spans[1:, 0] == spans[:-1, 0]
    assert not (same & (spans[1:, 1] < spans[:-1, 2])).any(), "a sample is in two spans"
    apart = ~(same & (spans[1:, 1] == spans[:-1, 2]))
    begins, ends = np.concatenate([[True], apart])[: len(spans)], np.concatenate([apart, [True]])[: len(spans)]
    return np.concatenate([spans[begins, :2], spans[ends, 2:]], axis=1)


def by_shard(spans: Spans) -> Iterator[tuple[int, Numbers, Numbers]]:
    """For each shard in turn: its number, and the numbers and positions of the samples in it."""
    first = 0
    for shard, rows in groupby(spans.tolist(), key=lambda row: row[0]):
        positions = np.concatenate([np.arange(start, stop) for _, start, stop in rows])
        yield shard, np.arange(first, first + len(positions)), positions
        first += len(positions)
