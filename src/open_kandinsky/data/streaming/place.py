"""Where a stream is: in each of its sources, and in all."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

Sample = tuple[int, int, int, int]  # source, epoch, shard, position


@dataclass(frozen=True)
class Place:
    """In one source: the epoch, how many of its samples were given out, and which read ones cannot be used at all.

    `lost`: numbers of samples that could not be read, are counted, and whose turn has not come.
    """

    epoch: int
    taken: int = 0
    lost: Sequence[int] = ()


@dataclass(frozen=True)
class StreamPlace:
    """After a batch. `drawn`: how often a source was drawn. `waiting`: samples that wait for others of their size."""

    places: Sequence[Place]
    drawn: int = 0
    waiting: Sequence[Sample] = ()

    def epochs(self) -> list[int]:
        """For each source the oldest epoch of which this stream has something to come."""
        waiting = [(source, epoch) for source, epoch, _, _ in self.waiting]
        return [min([p.epoch, *(e for s, e in waiting if s == source)]) for source, p in enumerate(self.places)]

    def plain(self) -> dict[str, Any]:
        """For a checkpoint: lists, dicts and numbers."""
        return asdict(self)


def restored(plain: dict[str, Any]) -> StreamPlace:
    """Undoes `StreamPlace.plain`."""
    waiting = [(source, epoch, shard, position) for source, epoch, shard, position in plain["waiting"]]
    return StreamPlace([Place(**place) for place in plain["places"]], plain["drawn"], waiting)
