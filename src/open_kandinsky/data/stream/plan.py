"""Which samples each stream reads, in which order, and where it stands.

A stream is one worker of one process. `Plan` assigns it a part of every epoch of every source: a pure function of seed,
source, epoch and stream, so that a position in the data is a few numbers. `Cursor` reads that part from the shards,
epoch after epoch. `StreamState` is what a checkpoint keeps of a stream. `Shards` and `Prepare` are what a stream needs
of a source and of whatever makes rows of its samples.
"""

import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from open_kandinsky.data.memory import Batch
from open_kandinsky.data.stream import permutation
from open_kandinsky.data.stream.permutation import Intervals, Numbers, Permutation
from open_kandinsky.data.tar.stats import MIN_JUDGED, SampleStats

MIN_JUDGED_SHARDS = 10

SampleIndex = tuple[int, int, int, int]  # source, epoch, shard, position
Remaining = dict[int, Intervals]  # epoch -> the samples that remain of it


@runtime_checkable
class Shards(Protocol):
    """The shards of one source. `counts`: how many samples each holds, as the index says."""

    @property
    def counts(self) -> Sequence[int]: ...

    def read(self, shard: int, wanted: Sequence[int], stats: SampleStats) -> Iterator[tuple[int, Any]]:
        """Position and undecoded sample of each of the positions `wanted` (ascending) that can be read.

        Those that cannot be read are added to `stats`, once each, before the samples behind them are yielded. A sample
        has a `key`, which names it in the log, and a `url`, its shard's.
        """
        ...


@runtime_checkable
class Prepare(Protocol):
    """Makes rows of samples. Both methods raise BadSample for one that cannot be used."""

    def bucket(self, sample: Any, /) -> Hashable:
        """What all samples of a batch have in common, known without decoding: the size of their images."""
        ...

    def row(self, sample: Any, bucket: Hashable, rng: random.Random, /) -> Batch:
        """One row of a batch, decoded. `rng`: the only random numbers that it may use."""
        ...


@dataclass(frozen=True)
class SourcePosition:
    """The position of a stream in one source: the epoch, and how many of its samples were emitted.

    `unreadable`: numbers of samples that could not be read, are counted, and whose turn has not come.
    """

    epoch: int
    emitted: int = 0
    unreadable: Sequence[int] = ()


@dataclass(frozen=True)
class StreamState:
    """A stream's state after a batch.

    `draws`: how often a source was drawn. `waiting`: samples that wait for others of their size.
    """

    positions: Sequence[SourcePosition]
    draws: int = 0
    waiting: Sequence[SampleIndex] = ()

    def oldest_epochs(self) -> list[int]:
        """For each source the oldest epoch of which this stream has samples to come."""
        epochs = [[position.epoch] for position in self.positions]
        for source, epoch, _, _ in self.waiting:
            epochs[source].append(epoch)
        return [min(some) for some in epochs]

    def plain(self) -> dict[str, Any]:
        """For a checkpoint: lists, dicts and numbers."""
        places = [{"epoch": p.epoch, "taken": p.emitted, "lost": p.unreadable} for p in self.positions]
        return {"places": places, "drawn": self.draws, "waiting": self.waiting}


def state_from_plain(plain: dict[str, Any]) -> StreamState:
    """The inverse of `StreamState.plain`."""
    positions = [SourcePosition(place["epoch"], place["taken"], place["lost"]) for place in plain["places"]]
    waiting = [(source, epoch, shard, position) for source, epoch, shard, position in plain["waiting"]]
    return StreamState(positions, plain["drawn"], waiting)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One stream's part of one epoch of one source: intervals in reading order, and the order of emission."""

    intervals: Intervals
    order: Permutation

    def remaining(self, position: SourcePosition) -> Intervals:
        """The samples that were not emitted, without those that cannot be read."""
        buffered, entering = self.order.remaining(position.emitted)
        buffered = np.setdiff1d(buffered, np.array(position.unreadable, dtype=np.int64))
        rest = permutation.slice_numbers(self.intervals, entering, self.order.n)
        return permutation.merge([permutation.locate(self.intervals, buffered), rest])

    def to_read(self, position: SourcePosition) -> Iterator[tuple[int, Numbers, Numbers]]:
        """For each shard that is still needed: the numbers and the positions of the samples to read, ascending."""
        buffered, entering = self.order.remaining(position.emitted)
        buffered = np.setdiff1d(buffered, np.array(position.unreadable, dtype=np.int64))
        for shard, numbers, positions in permutation.by_shard(self.intervals):
            wanted = (numbers >= entering) | np.isin(numbers, buffered)
            if wanted.any():
                yield shard, numbers[wanted], positions[wanted]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The assignment of samples to streams.

    `identities`: a hash of each source. `counts`: for each source the samples in each shard. `buffer`: samples of each
    source in a stream's shuffle buffer. `first_epochs`: of each source. `remaining`: for each source what remains of
    epochs that were begun by another number of streams; other epochs are read whole.
    """

    identities: Sequence[str]
    counts: Sequence[Sequence[int]]
    seed: int
    buffer: int
    streams: int
    first_epochs: Sequence[int]
    remaining: Sequence[Remaining]

    def facts(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same."""
        return {"sources": list(self.identities), "seed": self.seed, "shuffle_buffer": self.buffer}

    @cached_property
    def samples(self) -> int:
        """The number of samples of all sources."""
        return sum(sum(counts) for counts in self.counts)

    @cached_property
    def min_judged(self) -> int:
        """How many samples a stream reads before too many bad ones end it: one broken shard is not a broken set."""
        return max(MIN_JUDGED, MIN_JUDGED_SHARDS * self.samples // sum(len(counts) for counts in self.counts))

    def assignment(self, source: int, epoch: int, stream: int) -> Assignment:
        """Parts rotate from epoch to epoch: with fewer samples than streams, each stream has one now and then."""
        seed, counts = f"{self.seed}/{source}/{epoch}", self.counts[source]
        intervals = self.remaining[source].get(epoch)
        intervals = permutation.all_samples(counts) if intervals is None else intervals
        shuffled = permutation.shuffle_shards(intervals, shards=len(counts), seed=seed)
        part = permutation.split(shuffled, (stream + epoch) % self.streams, self.streams)
        order = Permutation(n=permutation.total(part), buffer=self.buffer, seed=f"{seed}/{stream}")
        return Assignment(intervals=part, order=order)


class SampleRef(NamedTuple):
    """An undecoded sample and where it lies."""

    source: int
    epoch: int
    shard: int
    position: int
    sample: Any

    @property
    def index(self) -> SampleIndex:
        return self.source, self.epoch, self.shard, self.position


class Cursor:
    """Emits the undecoded samples of one source in the order of its assignments, epoch after epoch, without end.

    It reads ahead no further than the shuffle buffer. `assignment`: epoch -> what this stream reads of it; `stats`:
    epoch -> where samples that cannot be read are counted.
    """

    def __init__(
        self,
        *,
        source: int,
        shards: Shards,
        assignment: Callable[[int], Assignment],
        stats: Callable[[int], SampleStats],
        position: SourcePosition,
    ) -> None:
        self.source, self.shards, self.assignment, self.stats = source, shards, assignment, stats
        self.epoch, self.emitted, self.unreadable = position.epoch, position.emitted, set(position.unreadable)
        self.buffered: dict[int, SampleRef] = {}

    def position(self) -> SourcePosition:
        """A cursor that begins here emits what this one would emit next."""
        return SourcePosition(self.epoch, self.emitted, sorted(self.unreadable))

    def samples(self) -> Iterator[SampleRef | None]:
        """Endless; None in the place of a sample that cannot be read."""
        while True:
            assignment = self.assignment(self.epoch)
            reader, read = self.read(assignment), 0
            for number in assignment.order.iterate(self.emitted):
                while read <= number and number not in self.unreadable:
                    read = next(reader)
                self.emitted += 1
                self.unreadable.discard(number)
                yield self.buffered.pop(number, None)
            self.epoch, self.emitted = self.epoch + 1, 0

    def read(self, assignment: Assignment) -> Iterator[int]:
        """Reads samples into `buffered`; yields the number before which all samples are read or unreadable."""
        for shard, numbers, positions in assignment.to_read(self.position()):
            expected = iter(zip(numbers.tolist(), positions.tolist(), strict=True))
            for position, sample in self.shards.read(shard, positions.tolist(), self.stats(self.epoch)):
                for number, expected_position in expected:
                    if expected_position == position:
                        break
                    self.unreadable.add(number)
                else:
                    raise AssertionError(f"position {position} was not wanted, or comes twice")
                self.buffered[number] = SampleRef(self.source, self.epoch, shard, position, sample)
                yield number + 1
            self.unreadable.update(number for number, _ in expected)
            yield int(numbers[-1]) + 1
