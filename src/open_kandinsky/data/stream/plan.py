"""What a stream asks of its sources, and of what makes batches of them.

Where a stream is: in each of its sources, and in all.

What each stream reads in each epoch: a pure function of seed, source, epoch and stream.

One stream's way through one source: undecoded samples, epoch after epoch, without end.
"""

import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from open_kandinsky.data.memory import Batch
from open_kandinsky.data.stream import permutation
from open_kandinsky.data.stream.permutation import Intervals, Numbers, Permutation
from open_kandinsky.data.tar.stats import JUDGED_FROM, SampleStats


@runtime_checkable
class Example(Protocol):
    """An undecoded sample. `key` names it in the log, `url` is its shard."""

    @property
    def key(self) -> str: ...

    @property
    def url(self) -> str: ...


@runtime_checkable
class Shards(Protocol):
    """Shards of one source. `counts`: how many samples each holds, as the index says."""

    @property
    def counts(self) -> Sequence[int]: ...

    def read(self, shard: int, wanted: Sequence[int], tally: SampleStats) -> Iterator[tuple[int, Any]]:
        """Position in the shard and undecoded example, for those of `wanted` (ascending) that can be read.

        Those that cannot are added to `tally` before what follows them is given, and once each.
        """
        ...


@runtime_checkable
class Prepare(Protocol):
    """Makes rows of examples. Both raise BadSample for one that cannot be used."""

    def bucket(self, example: Any, /) -> Hashable:
        """What a batch must have in common, told without decoding: the size of its images."""
        ...

    def row(self, example: Any, bucket: Hashable, draws: random.Random, /) -> Batch:
        """One row of a batch, decoded. `draws`: the only random numbers that it may use."""
        ...


Sample = tuple[int, int, int, int]  # source, epoch, shard, position


@dataclass(frozen=True)
class SourcePosition:
    """In one source: the epoch, how many of its samples were given out, and which read ones cannot be used at all.

    `lost`: numbers of samples that could not be read, are counted, and whose turn has not come.
    """

    epoch: int
    taken: int = 0
    lost: Sequence[int] = ()


@dataclass(frozen=True)
class StreamState:
    """After a batch. `drawn`: how often a source was drawn. `waiting`: samples that wait for others of their size."""

    places: Sequence[SourcePosition]
    drawn: int = 0
    waiting: Sequence[Sample] = ()

    def epochs(self) -> list[int]:
        """For each source the oldest epoch of which this stream has something to come."""
        waiting = [(source, epoch) for source, epoch, _, _ in self.waiting]
        return [min([p.epoch, *(e for s, e in waiting if s == source)]) for source, p in enumerate(self.places)]

    def plain(self) -> dict[str, Any]:
        """For a checkpoint: lists, dicts and numbers."""
        return asdict(self)


def state_from_plain(plain: dict[str, Any]) -> StreamState:
    """Undoes `StreamPlace.plain`."""
    waiting = [(source, epoch, shard, position) for source, epoch, shard, position in plain["waiting"]]
    return StreamState([SourcePosition(**place) for place in plain["places"]], plain["drawn"], waiting)


JUDGED_SHARDS = 10

Rest = dict[int, Intervals]  # epoch -> the samples that remain of it


@dataclass(frozen=True, kw_only=True)
class Share:
    """One stream's part of one epoch of one source: spans in the order of reading, and the order of giving out."""

    spans: Intervals
    order: Permutation

    def left(self, place: SourcePosition) -> Intervals:
        """The samples that were not given out, but for those that cannot be read."""
        held, coming = self.order.left(place.taken)
        held = np.setdiff1d(held, np.array(place.lost, dtype=np.int64))
        return permutation.merged(
            [permutation.located(self.spans, held), permutation.between(self.spans, coming, self.order.n)]
        )

    def to_read(self, place: SourcePosition) -> Iterator[tuple[int, Numbers, Numbers]]:
        """For each shard that is still needed: the numbers and the positions of the samples to read, ascending."""
        held, coming = self.order.left(place.taken)
        held = np.setdiff1d(held, np.array(place.lost, dtype=np.int64))
        for shard, numbers, positions in permutation.by_shard(self.spans):
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

    def epoch(self, source: int, epoch: int) -> Intervals:
        """What all streams together read in an epoch."""
        rest = self.rest[source].get(epoch)
        return permutation.whole(self.counts[source]) if rest is None else rest

    def share(self, source: int, epoch: int, stream: int) -> Share:
        """Parts go round from epoch to epoch: where samples are fewer than streams, each stream has one at times."""
        seed = f"{self.seed}/{source}/{epoch}"
        order = permutation.shuffled(self.epoch(source, epoch), shards=len(self.counts[source]), seed=seed)
        mine = permutation.part(order, (stream + epoch) % self.streams, self.streams)
        through = Permutation(n=permutation.size(mine), buffer=self.buffer, seed=f"{seed}/{stream}")
        return Share(spans=mine, order=through)


class SampleRef(NamedTuple):
    """An undecoded sample and where it lies."""

    source: int
    epoch: int
    shard: int
    position: int
    example: Any

    def place(self) -> Sample:
        return self.source, self.epoch, self.shard, self.position


class Cursor:
    """Gives samples out in the order of its shares, reading ahead no more than a share's buffer.

    `share` says what is this stream's of an epoch; `tally` is told of samples that cannot be read in an epoch.
    """

    def __init__(
        self,
        *,
        source: int,
        shards: Shards,
        share: Callable[[int], Share],
        tally: Callable[[int], SampleStats],
        place: SourcePosition,
    ) -> None:
        self.source, self.shards, self.share, self.tally = source, shards, share, tally
        self.epoch, self.taken, self.lost = place.epoch, place.taken, set(place.lost)
        self.held: dict[int, SampleRef] = {}

    def place(self) -> SourcePosition:
        """Where it is; a cursor that begins there gives out what this one would."""
        return SourcePosition(self.epoch, self.taken, sorted(self.lost))

    def samples(self) -> Iterator[SampleRef | None]:
        """Without end; None in the place of a sample that cannot be read."""
        while True:
            share = self.share(self.epoch)
            reading, reached = self.reading(share), 0
            for number in share.order.given(self.taken):
                while reached <= number and number not in self.lost:
                    reached = next(reading)
                self.taken += 1
                self.lost.discard(number)
                yield self.held.pop(number, None)
            self.epoch, self.taken = self.epoch + 1, 0

    def reading(self, share: Share) -> Iterator[int]:
        """Reads what was not given out into `held` or `lost`, and says each time before which number all is read."""
        for shard, numbers, positions in share.to_read(self.place()):
            expected = iter(zip(numbers.tolist(), positions.tolist(), strict=True))
            for position, example in self.shards.read(shard, positions.tolist(), self.tally(self.epoch)):
                number = self.lose_until(expected, position)
                self.held[number] = SampleRef(self.source, self.epoch, shard, position, example)
                yield number + 1
            self.lost.update(number for number, _ in expected)
            yield int(numbers[-1]) + 1

    def lose_until(self, expected: Iterator[tuple[int, int]], position: int) -> int:
        """The number of the sample at `position`; those before it could not be read."""
        for number, expected_position in expected:
            if expected_position == position:
                return number
            self.lost.add(number)
        raise AssertionError(f"position {position} was not asked for, or comes twice")
