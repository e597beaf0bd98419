"""Undecoded samples that wait for others of their bucket, until they fill a batch."""

import random
from collections.abc import Hashable, Iterator

from open_kandinsky.core.errors import BadSample
from open_kandinsky.data.memory import Batch
from open_kandinsky.data.streaming.building import Building
from open_kandinsky.data.streaming.cursor import Found
from open_kandinsky.data.streaming.place import Sample
from open_kandinsky.data.streaming.protocols import Prepare
from open_kandinsky.data.streaming.rooms import Rooms
from open_kandinsky.data.streaming.tallies import Tallies


class Rows:
    """Makes rows of samples, and counts those of which it cannot.

    What a row draws depends on `seed` and the sample's source, epoch and key, and on nothing else.
    """

    def __init__(self, *, prepare: Prepare, seed: int, tallies: Tallies) -> None:
        self.prepare, self.seed, self.tallies = prepare, seed, tallies
        self.undecodable = 0  # one after another

    def make(self, found: Found, bucket: Hashable) -> Batch | None:
        """The sample's row; None where it cannot be made."""
        draws = random.Random(f"{self.seed}/{found.source}/{found.epoch}/{found.example.key}")
        try:
            row, self.undecodable = self.prepare.row(found.example, bucket, draws), 0
        except ValueError as error:
            self.undecodable += 1
            return self.refuse(found, BadSample.from_error(error))
        return row

    def refuse(self, found: Found, bad: BadSample) -> None:
        """Counts a sample that cannot be used."""
        tally = self.tallies[found.source, found.epoch]
        tally.add(bad.reason, key=found.example.key, shard=found.example.url, detail=bad.detail)

    def used(self, found: Found) -> None:
        """Counts a sample that is in a batch."""
        self.tallies[found.source, found.epoch].good()


class Queue:
    """The samples of one bucket. They are decoded when there are enough for a batch; then the first are in `building`.

    They leave the queue with their batch, so that those that wait can be told at any time.
    """

    def __init__(self, bucket: Hashable, rows: Rows, rooms: Rooms) -> None:
        self.bucket, self.rows, self.rooms = bucket, rows, rooms
        self.waiting: list[Found] = []
        self.building: Building | None = None

    def full(self, batch_size: int) -> Iterator[Batch]:
        """Its full batches."""
        while len(self.waiting) >= batch_size:
            building = self.decode(batch_size)
            if building.count == batch_size:
                yield self.take(building)

    def short(self) -> Iterator[Batch]:
        """All that wait, as one batch."""
        building = self.decode(len(self.waiting))
        if building.count:
            yield self.take(building)

    def decode(self, size: int) -> Building:
        """The first `size` that can be decoded, or fewer where no more wait; those that cannot be wait no longer."""
        building = self.building = self.building or Building(size, self.rooms)
        while building.count < min(size, len(self.waiting)):
            row = self.rows.make(self.waiting[building.count], self.bucket)
            if row is None:
                del self.waiting[building.count]
            else:
                building.add(row)
        return building

    def take(self, building: Building) -> Batch:
        """The batch that was built, whose samples wait no longer."""
        for found in self.waiting[: building.count]:
            self.rows.used(found)
        del self.waiting[: building.count]
        self.building = None
        return building.batch()


class Queues:
    """A queue for each bucket."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.rooms = rows, Rooms()
        self.queues: dict[Hashable, Queue] = {}

    def put(self, found: Found) -> Queue | None:
        """The queue that the sample waits in from now on; None for one that cannot be used."""
        try:
            bucket = self.rows.prepare.bucket(found.example)
        except ValueError as error:
            return self.rows.refuse(found, BadSample.from_error(error))
        queue = self.queues.setdefault(bucket, Queue(bucket, self.rows, self.rooms))
        queue.waiting.append(found)
        return queue

    def all(self) -> list[Queue]:
        return list(self.queues.values())

    def places(self) -> list[Sample]:
        """Where the waiting samples lie, each queue's in its order."""
        return [found.place() for queue in self.queues.values() for found in queue.waiting]
