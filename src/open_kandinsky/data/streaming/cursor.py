"""One stream's way through one source: undecoded samples, epoch after epoch, without end."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from open_kandinsky.data.streaming.place import Place, Sample
from open_kandinsky.data.streaming.plan import Share
from open_kandinsky.data.streaming.protocols import Shards
from open_kandinsky.data.tars.tally import Skipped


class Found(NamedTuple):
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
        tally: Callable[[int], Skipped],
        place: Place,
    ) -> None:
        self.source, self.shards, self.share, self.tally = source, shards, share, tally
        self.epoch, self.taken, self.lost = place.epoch, place.taken, set(place.lost)
        self.held: dict[int, Found] = {}

    def place(self) -> Place:
        """Where it is; a cursor that begins there gives out what this one would."""
        return Place(self.epoch, self.taken, sorted(self.lost))

    def samples(self) -> Iterator[Found | None]:
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
                self.held[number] = Found(self.source, self.epoch, shard, position, example)
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
