"""What each stream reads in each epoch: a pure function of seed, source, epoch and stream."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from open_kandinsky.data.streaming import spans
from open_kandinsky.data.streaming.permutation import Permutation
from open_kandinsky.data.streaming.place import Place
from open_kandinsky.data.streaming.spans import Numbers, Spans
from open_kandinsky.data.tars.tally import JUDGED_FROM

JUDGED_SHARDS = 10

Rest = dict[int, Spans]  # epoch -> the samples that remain of it


@dataclass(frozen=True, kw_only=True)
class Share:
    """One stream's part of one epoch of one source: spans in the order of reading, and the order of giving out."""

    spans: Spans
    order: Permutation

    def left(self, place: Place) -> Spans:
        """The samples that were not given out, but for those that cannot be read."""
        held, coming = self.order.left(place.taken)
        held = np.setdiff1d(held, np.array(place.lost, dtype=np.int64))
        return spans.merged([spans.located(self.spans, held), spans.between(self.spans, coming, self.order.n)])

    def to_read(self, place: Place) -> Iterator[tuple[int, Numbers, Numbers]]:
        """For each shard that is still needed: the numbers and the positions of the samples to read, ascending."""
        held, coming = self.order.left(place.taken)
        held = np.setdiff1d(held, np.array(place.lost, dtype=np.int64))
        for shard, numbers, positions in spans.by_shard(self.spans):
            wanted = (numbers >= coming) | np.isin(numbers, held)
            if wanted.any():
                yield shard, numbers[wanted], positions[wanted]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`identities`: what tells each source from other data. `counts`: the samples in each of its shards.

    `buffer`: samples that a stream holds of each source. `begins`: for each source the first epoch. `rest`: for each
    source what remains of epochs that were begun by another number of streams; the others are whole.
    """

    identities: Sequence[str]
    counts: Sequence[Sequence[int]]
    seed: int
    buffer: int
    streams: int
    begins: Sequence[int]
    rest: Sequence[Rest]

    def facts(self) -> dict[str, Any]:
        """What must be the same for a place to mean the same."""
        return {"sources": list(self.identities), "seed": self.seed, "shuffle_buffer": self.buffer}

    @cached_property
    def samples(self) -> int:
        """How many there are in all sources together."""
        return sum(sum(counts) for counts in self.counts)

    @cached_property
    def judged_from(self) -> int:
        """How many samples a stream reads before it judges them: one broken shard is not a broken set."""
        return max(JUDGED_FROM, JUDGED_SHARDS * self.samples // sum(len(counts) for counts in self.counts))

    def epoch(self, source: int, epoch: int) -> Spans:
        """What all streams together read in an epoch."""
        rest = self.rest[source].get(epoch)
        return spans.whole(self.counts[source]) if rest is None else rest

    def share(self, source: int, epoch: int, stream: int) -> Share:
        """Parts go round from epoch to epoch: where samples are fewer than streams, each stream has one at times."""
        seed = f"{self.seed}/{source}/{epoch}"
        order = spans.shuffled(self.epoch(source, epoch), shards=len(self.counts[source]), seed=seed)
        mine = spans.part(order, (stream + epoch) % self.streams, self.streams)
        through = Permutation(n=spans.size(mine), buffer=self.buffer, seed=f"{seed}/{stream}")
        return Share(spans=mine, order=through)
