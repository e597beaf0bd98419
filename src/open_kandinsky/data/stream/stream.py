"""One endless stream of batches, and after each of them the place from which another could go on."""

import random
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby
from typing import NamedTuple

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.memory import Batch
from open_kandinsky.data.stream.batches import Bucket, BucketBatcher, RowMaker
from open_kandinsky.data.stream.plan import Cursor, Plan, Prepare, Sample, SampleRef, Shards, StreamState
from open_kandinsky.data.stream.tallies import Epoch, Plain, StreamStats

IN_A_ROW = 100_000


class Made(NamedTuple):
    """A batch, where its stream is after it, and what this stream has counted in the epochs that it is in."""

    batch: Batch
    after: StreamState
    tallies: dict[Epoch, Plain]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What makes batches of the samples that a plan names. `weights`: how often each source is drawn."""

    plan: Plan
    sources: Sequence[Shards]
    weights: Sequence[float]
    prepare: Prepare
    batch_size: int
    max_bad_share: float


class Stream:
    """The stream `number` of a plan, from `begin` on.

    Raises ValueError where more than `max_bad_share` of what was read cannot be used, and where nothing can be.
    """

    def __init__(self, recipe: Recipe, *, number: int, begin: StreamState) -> None:
        self.recipe, self.number, self.begin, self.drawn = recipe, number, begin, begin.drawn
        self.tallies = StreamStats()
        self.rows = RowMaker(prepare=recipe.prepare, seed=recipe.plan.seed, tallies=self.tallies)
        self.queues = BucketBatcher(self.rows)
        self.cursors = [self.cursor(source) for source in range(len(recipe.sources))]
        self.samples = [cursor.samples() for cursor in self.cursors]
        self.marks = list(accumulate(recipe.weights))
        self.bad = 0

    def cursor(self, source: int) -> Cursor:
        return Cursor(
            source=source,
            shards=self.recipe.sources[source],
            share=partial(self.recipe.plan.share, source, stream=self.number),
            tally=lambda epoch: self.tallies[source, epoch],
            place=self.begin.places[source],
        )

    def __iter__(self) -> Iterator[Made]:
        for found in find_again(self.recipe.sources, self.begin.waiting, self.tallies):
            self.queues.put(found)
        for queue in self.queues.all():
            yield from self.full(queue)
        while True:
            yield from self.full(self.put_next())
            self.judge()

    def full(self, queue: Bucket) -> Iterator[Made]:
        """The batches that one queue can fill."""
        for batch in queue.full(self.recipe.batch_size):
            yield Made(batch, self.place(), self.tallies.plain())
            self.tallies.forget(before=self.place().epochs())

    def place(self) -> StreamState:
        """Where the stream is; one that begins there goes on as this one does."""
        return StreamState([cursor.place() for cursor in self.cursors], self.drawn, self.queues.places())

    def put_next(self) -> Bucket:
        """The queue that the next sample waits in; its source is drawn once, for one that can be used."""
        source = self.draw()
        for _ in range(min(self.recipe.plan.samples, IN_A_ROW)):
            found = next(self.samples[source])
            queue = None if found is None else self.queues.put(found)
            if queue is not None:
                return queue
            self.judge()
        raise self.nothing()

    def draw(self) -> int:
        """The next sample's source: decided by seed, stream, and how many were drawn."""
        self.drawn += 1
        draw = random.Random(f"{self.recipe.plan.seed}/{self.number}/{self.drawn}").random()
        return bisect(self.marks, draw * self.marks[-1], hi=len(self.marks) - 1)

    def judge(self) -> None:
        """Raises ValueError where too many samples, or all, cannot be used.

        Bad samples are counted when they are met, good ones when their batch is made; those in between speak for them.
        """
        if self.tallies.bad() == self.bad:
            return
        self.bad = self.tallies.bad()
        if self.rows.undecodable >= min(self.recipe.plan.samples, IN_A_ROW):
            raise self.nothing()
        total = self.tallies.joined(self.recipe.max_bad_share)
        total.seen += sum(len(cursor.held) for cursor in self.cursors) + len(self.queues.places())
        if total.seen >= self.recipe.plan.judged_from:
            total.check()

    def nothing(self) -> ValueError:
        report = self.tallies.joined(1.0).report()
        return UserError(f"no sample can be used any more, so no batch would ever come:\n{report}")


def find_again(sources: Sequence[Shards], waiting: Sequence[Sample], tallies: StreamStats) -> list[SampleRef]:
    """The samples that lie there, read again, in their order."""
    found: dict[Sample, SampleRef] = {}
    for (source, epoch, shard), some in groupby(sorted(waiting), key=lambda sample: sample[:3]):
        positions = [sample[3] for sample in some]
        for position, example in sources[source].read(shard, positions, tallies[source, epoch]):
            sample = source, epoch, shard, position
            found[sample] = SampleRef(*sample, example)
    return [found[sample] for sample in waiting if sample in found]
