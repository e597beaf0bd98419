"""Memory in which batches are built one after the other: it is used again as soon as nobody holds what lay there.

Fresh memory costs a page fault for every 4 kB of a batch; fresh shared memory twice as much, and its end as much again.

A batch in the making, row by row.

Undecoded samples that wait for others of their bucket, until they fill a batch.
"""

import random
from collections import defaultdict, deque
from collections.abc import Hashable, Iterator, Sequence
from math import prod
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils.data import get_worker_info

from open_kandinsky.core.errors import BadSample
from open_kandinsky.data.memory import Batch
from open_kandinsky.data.stream.plan import Prepare, Sample, SampleRef
from open_kandinsky.data.stream.tallies import StreamStats

KNOWN = 8  # rooms a field that are used again; what is built beyond them goes with its batch
FREE, TAKEN = 0, 1  # the last byte of a room


class BufferPool:
    """The memory of one stream. In a worker it is shared, lest a batch be copied on its way out."""

    def __init__(self) -> None:
        self.known: defaultdict[str, deque[UntypedStorage]] = defaultdict(lambda: deque(maxlen=KNOWN))

    def tensor(self, field: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Uninitialised, in a room of its own until the one who takes it (`Given`) holds it no longer."""
        return storage_as_tensor(self.room(field, prod(shape) * dtype.itemsize), dtype, shape)

    def room(self, field: str, nbytes: int) -> UntypedStorage:
        """A free one, at most twice as large as needed, or else a new one."""
        fit = [room for room in self.known[field] if nbytes < room.nbytes() <= 2 * nbytes + 1]
        free = [room for room in fit if room[-1] == FREE]
        room = min(free, key=UntypedStorage.nbytes, default=None)
        if room is None:
            room = new_storage(nbytes + 1)
            self.known[field].append(room)
        mark(room, TAKEN)
        return room


class PooledTensor:
    """A tensor of `Rooms` on its way to the process that takes it: there it is a tensor, which frees its room."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> tuple[object, ...]:
        return receive, (self.tensor,)


def hand_over(tensor: Tensor) -> Tensor | PooledTensor:
    """What leaves a stream: without workers it is taken at once."""
    return receive(tensor) if get_worker_info() is None else PooledTensor(tensor)


def receive(tensor: Tensor) -> Tensor:
    """The same numbers in the same place. The room is free when neither it nor any view of it is held.

    Python may forget a storage that C++ still has, but an array lives as long as any tensor that was made from it.
    """
    room = tensor.untyped_storage()
    array = storage_as_tensor(room, torch.uint8, [room.nbytes()]).numpy()
    Finalize(array, mark, (room, FREE))  # not in a fork of this process
    return torch.from_numpy(array)[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)


def mark(room: UntypedStorage, state: int) -> None:
    room[room.nbytes() - 1] = state


def new_storage(nbytes: int) -> UntypedStorage:
    if get_worker_info() is None:
        return UntypedStorage(nbytes)
    return UntypedStorage._new_shared(nbytes, device="cpu")


def storage_as_tensor(room: UntypedStorage, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """The beginning of a room as a tensor."""
    return torch.empty(0, dtype=dtype).set_(room, 0, tuple(shape))  # pyright: ignore[reportCallIssue]


class BatchBuilder:
    """Room for `size` rows. Tensors are stacked, everything else makes a list.

    A row is copied to its place as soon as it is made, and its own memory is at once free for the next one: rows that
    wait to be stacked together cost a page fault for every 4 kB of each.
    """

    def __init__(self, size: int, rooms: BufferPool) -> None:
        self.size, self.rooms, self.count = size, rooms, 0
        self.columns: dict[str, Any] = {}

    def add(self, row: Batch) -> None:
        """The next row."""
        for name, value in row.items():
            if isinstance(value, Tensor):
                if name not in self.columns:
                    self.columns[name] = self.rooms.tensor(name, [self.size, *value.shape], value.dtype)
                self.columns[name][self.count] = value
            else:
                self.columns.setdefault(name, []).append(value)
        self.count += 1

    def batch(self) -> Batch:
        """The rows so far."""
        rows = {name: column[: self.count] for name, column in self.columns.items()}
        return {name: hand_over(column) if isinstance(column, Tensor) else column for name, column in rows.items()}


class RowMaker:
    """Makes rows of samples, and counts those of which it cannot.

    What a row draws depends on `seed` and the sample's source, epoch and key, and on nothing else.
    """

    def __init__(self, *, prepare: Prepare, seed: int, tallies: StreamStats) -> None:
        self.prepare, self.seed, self.tallies = prepare, seed, tallies
        self.undecodable = 0  # one after another

    def make(self, found: SampleRef, bucket: Hashable) -> Batch | None:
        """The sample's row; None where it cannot be made."""
        draws = random.Random(f"{self.seed}/{found.source}/{found.epoch}/{found.example.key}")
        try:
            row, self.undecodable = self.prepare.row(found.example, bucket, draws), 0
        except ValueError as error:
            self.undecodable += 1
            return self.refuse(found, BadSample.from_error(error))
        return row

    def refuse(self, found: SampleRef, bad: BadSample) -> None:
        """Counts a sample that cannot be used."""
        tally = self.tallies[found.source, found.epoch]
        tally.add(bad.reason, key=found.example.key, shard=found.example.url, detail=bad.detail)

    def used(self, found: SampleRef) -> None:
        """Counts a sample that is in a batch."""
        self.tallies[found.source, found.epoch].good()


class Bucket:
    """The samples of one bucket. They are decoded when there are enough for a batch; then the first are in `building`.

    They leave the queue with their batch, so that those that wait can be told at any time.
    """

    def __init__(self, bucket: Hashable, rows: RowMaker, rooms: BufferPool) -> None:
        self.bucket, self.rows, self.rooms = bucket, rows, rooms
        self.waiting: list[SampleRef] = []
        self.building: BatchBuilder | None = None

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

    def decode(self, size: int) -> BatchBuilder:
        """The first `size` that can be decoded, or fewer where no more wait; those that cannot be wait no longer."""
        building = self.building = self.building or BatchBuilder(size, self.rooms)
        while building.count < min(size, len(self.waiting)):
            row = self.rows.make(self.waiting[building.count], self.bucket)
            if row is None:
                del self.waiting[building.count]
            else:
                building.add(row)
        return building

    def take(self, building: BatchBuilder) -> Batch:
        """The batch that was built, whose samples wait no longer."""
        for found in self.waiting[: building.count]:
            self.rows.used(found)
        del self.waiting[: building.count]
        self.building = None
        return building.batch()


class BucketBatcher:
    """A queue for each bucket."""

    def __init__(self, rows: RowMaker) -> None:
        self.rows, self.rooms = rows, BufferPool()
        self.queues: dict[Hashable, Bucket] = {}

    def put(self, found: SampleRef) -> Bucket | None:
        """The queue that the sample waits in from now on; None for one that cannot be used."""
        try:
            bucket = self.rows.prepare.bucket(found.example)
        except ValueError as error:
            return self.rows.refuse(found, BadSample.from_error(error))
        queue = self.queues.setdefault(bucket, Bucket(bucket, self.rows, self.rooms))
        queue.waiting.append(found)
        return queue

    def all(self) -> list[Bucket]:
        return list(self.queues.values())

    def places(self) -> list[Sample]:
        """Where the waiting samples lie, each queue's in its order."""
        return [found.place() for queue in self.queues.values() for found in queue.waiting]
