"""One endless stream of batches: samples of several sources, drawn by weight, decoded and grouped by size.

After each batch the stream has a state from which another stream would continue with the same batches.
"""

import random
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby
from typing import NamedTuple

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.memory import Batch
from open_kandinsky.data.stream.batches import Bucket, BucketBatcher
from open_kandinsky.data.stream.plan import Cursor, Plan, Prepare, SampleIndex, SampleRef, Shards, StreamState
from open_kandinsky.data.tar.stats import Epoch, Plain, StreamStats

MAX_BAD_IN_A_ROW = 100_000


class StreamBatch(NamedTuple):
    """A batch, the stream's state after it, and what the stream has counted in the epochs that it is in."""

    batch: Batch
    state: StreamState
    stats: dict[Epoch, Plain]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a stream's batches. `weights`: how often each source is drawn."""

    plan: Plan
    sources: Sequence[Shards]
    weights: Sequence[float]
    prepare: Prepare
    batch_size: int
    max_bad_share: float


class Stream:
    """The batches of stream `number` of the recipe's plan, from `state` on.

    Raises UserError where more than `max_bad_share` of the samples read cannot be used, and where none can.
    """

    def __init__(self, recipe: Recipe, *, number: int, state: StreamState) -> None:
        self.recipe, self.number, self.resumed, self.draws = recipe, number, state, state.draws
        self.stats = StreamStats()
        self.batcher = BucketBatcher(prepare=recipe.prepare, seed=recipe.plan.seed, stats=self.stats)
        self.cursors = [
            Cursor(
                source=source,
                shards=shards,
                assignment=partial(recipe.plan.assignment, source, stream=number),
                stats=partial(self.stats.of, source),
                position=state.positions[source],
            )
            for source, shards in enumerate(recipe.sources)
        ]
        self.samples = [cursor.samples() for cursor in self.cursors]
        self.cumulative_weights = list(accumulate(recipe.weights))
        self.bad_when_judged = 0

    def __iter__(self) -> Iterator[StreamBatch]:
        for sample in read_again(self.recipe.sources, self.resumed.waiting, self.stats):
            self.batcher.add(sample)
        for bucket in list(self.batcher.buckets.values()):
            yield from self.full_batches(bucket)
        while True:
            yield from self.full_batches(self.add_next())
            self.judge()

    def full_batches(self, bucket: Bucket) -> Iterator[StreamBatch]:
        for batch in bucket.full_batches(self.recipe.batch_size):
            yield StreamBatch(batch, self.state(), self.stats.plain())
            self.stats.drop_before(self.state().oldest_epochs())

    def state(self) -> StreamState:
        """A stream that begins here yields the batches that this one would yield next."""
        return StreamState([cursor.position() for cursor in self.cursors], self.draws, self.batcher.waiting())

    def add_next(self) -> Bucket:
        """The bucket that the next usable sample was added to. Its source is drawn once, whatever is bad before it."""
        self.draws += 1
        draw = random.Random(f"{self.recipe.plan.seed}/{self.number}/{self.draws}").random()
        weights = self.cumulative_weights
        source = bisect(weights, draw * weights[-1], hi=len(weights) - 1)
        for _ in range(min(self.recipe.plan.samples, MAX_BAD_IN_A_ROW)):
            sample = next(self.samples[source])
            bucket = None if sample is None else self.batcher.add(sample)
            if bucket is not None:
                return bucket
            self.judge()
        raise self.nothing_usable()

    def judge(self) -> None:
        """Raises UserError where too many samples, or all, cannot be used.

        Bad samples are counted when they are met and good ones when their batch is made, so samples in between are
        taken for good here.
        """
        if self.stats.bad() == self.bad_when_judged:
            return
        self.bad_when_judged = self.stats.bad()
        if self.batcher.undecodable_in_a_row >= min(self.recipe.plan.samples, MAX_BAD_IN_A_ROW):
            raise self.nothing_usable()
        total = self.stats.merged(self.recipe.max_bad_share)
        total.seen += sum(len(cursor.buffered) for cursor in self.cursors) + len(self.batcher.waiting())
        if total.seen >= self.recipe.plan.min_judged:
            total.check()

    def nothing_usable(self) -> UserError:
        report = self.stats.merged(1.0).report()
        return UserError(f"no sample can be used any more, so no batch would ever come:\n{report}")


def read_again(sources: Sequence[Shards], waiting: Sequence[SampleIndex], stats: StreamStats) -> list[SampleRef]:
    """The samples that waited for their batch when a stream was saved, in their order."""
    samples: dict[SampleIndex, SampleRef] = {}
    for (source, epoch, shard), same_shard in groupby(sorted(waiting), key=lambda index: index[:3]):
        positions = [index[3] for index in same_shard]
        for position, sample in sources[source].read(shard, positions, stats.of(source, epoch)):
            ref = SampleRef(source, epoch, shard, position, sample)
            samples[ref.index] = ref
    return [samples[index] for index in waiting if index in samples]
