"""Batches are built row by row in pooled memory, one bucket of equal sizes at a time.

Written by hand in place of DataLoader's collate: with pooled buffers the loader runs at 0.90 to 0.95 of webdataset's
speed, without them at 0.83 to 0.89 (goal: 0.9; benchmarks/README.md). Fresh memory costs a page fault for every 4 kB of
a batch, fresh shared memory twice as much; so a buffer is used again once no tensor refers to it, and a row is copied
to its place in a batch as soon as it is decoded.
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
from open_kandinsky.data.stream.plan import Prepare, SampleIndex, SampleRef
from open_kandinsky.data.tar.stats import StreamStats

MAX_BUFFERS = 8  # of a field that are used again; further ones are freed with their batch
FREE, IN_USE = 0, 1  # the last byte of a buffer


class BufferPool:
    """The reusable memory of one stream. In a worker it is shared memory, so that batches leave it without a copy."""

    def __init__(self) -> None:
        self.buffers: defaultdict[str, deque[UntypedStorage]] = defaultdict(lambda: deque(maxlen=MAX_BUFFERS))

    def tensor(self, field: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Uninitialised, in a buffer of its own until the receiver of its `PooledTensor` drops it.

        The buffer is a free one that is at most twice as large as needed, or else a new one.
        """
        nbytes, buffers = prod(shape) * dtype.itemsize, self.buffers[field]
        fitting = [b for b in buffers if nbytes < b.nbytes() <= 2 * nbytes + 1 and b[-1] == FREE]
        buffer = min(fitting, key=UntypedStorage.nbytes, default=None)
        if buffer is None:
            shared = get_worker_info() is not None
            buffer = UntypedStorage._new_shared(nbytes + 1, device="cpu") if shared else UntypedStorage(nbytes + 1)
            buffers.append(buffer)
        mark(buffer, IN_USE)
        return tensor_in(buffer, dtype, shape)


class PooledTensor:
    """A tensor of a `BufferPool` on its way to another process. Unpickled it is a tensor, which frees its buffer."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> tuple[object, ...]:
        return receive, (self.tensor,)


def send(tensor: Tensor) -> Tensor | PooledTensor:
    """The tensor as it leaves its stream; in a process without workers it is received at once."""
    return receive(tensor) if get_worker_info() is None else PooledTensor(tensor)


def receive(tensor: Tensor) -> Tensor:
    """The same numbers in the same memory. The buffer is free once neither the result nor any view of it exists.

    Python may forget a storage that C++ still has, but an array lives as long as any tensor that was made from it.
    """
    buffer = tensor.untyped_storage()
    array = tensor_in(buffer, torch.uint8, [buffer.nbytes()]).numpy()
    Finalize(array, mark, (buffer, FREE))  # not in a fork of this process
    return torch.from_numpy(array)[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)


def mark(buffer: UntypedStorage, state: int) -> None:
    buffer[buffer.nbytes() - 1] = state


def tensor_in(buffer: UntypedStorage, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """The beginning of a buffer as a tensor."""
    return torch.empty(0, dtype=dtype).set_(buffer, 0, tuple(shape))  # pyright: ignore[reportCallIssue]


class BatchBuilder:
    """A batch of up to `size` rows: tensors are stacked, all other values are listed.

    Each row is copied to its place when it is added, so that its own memory is free for the next row.
    """

    def __init__(self, size: int, pool: BufferPool) -> None:
        self.size, self.pool, self.count = size, pool, 0
        self.columns: dict[str, Any] = {}

    def add(self, row: Batch) -> None:
        for name, value in row.items():
            if isinstance(value, Tensor):
                if name not in self.columns:
                    self.columns[name] = self.pool.tensor(name, [self.size, *value.shape], value.dtype)
                self.columns[name][self.count] = value
            else:
                self.columns.setdefault(name, []).append(value)
        self.count += 1

    def batch(self) -> Batch:
        """The rows that were added."""
        rows = {name: column[: self.count] for name, column in self.columns.items()}
        return {name: send(column) if isinstance(column, Tensor) else column for name, column in rows.items()}


class Bucket:
    """The samples of one size, undecoded until there are enough for a batch; its first rows are then in `builder`.

    Samples stay in `waiting` until their batch is complete, so that a checkpoint can list all that have none.
    """

    def __init__(self, key: Hashable, batcher: "BucketBatcher") -> None:
        self.key, self.batcher = key, batcher
        self.waiting: list[SampleRef] = []
        self.builder: BatchBuilder | None = None

    def full_batches(self, batch_size: int) -> Iterator[Batch]:
        while len(self.waiting) >= batch_size:
            builder = self.decode(batch_size)
            if builder.count == batch_size:
                yield self.pop(builder)

    def last_batch(self) -> Iterator[Batch]:
        """All samples that wait, as one batch, if any can be decoded."""
        builder = self.decode(len(self.waiting))
        if builder.count:
            yield self.pop(builder)

    def decode(self, size: int) -> BatchBuilder:
        """Decodes the first `size` samples, or all where fewer wait; samples that cannot be decoded are dropped."""
        builder = self.builder = self.builder or BatchBuilder(size, self.batcher.pool)
        while builder.count < min(size, len(self.waiting)):
            row = self.batcher.row(self.waiting[builder.count], self.key)
            if row is None:
                del self.waiting[builder.count]
            else:
                builder.add(row)
        return builder

    def pop(self, builder: BatchBuilder) -> Batch:
        """The batch of the builder, whose samples wait no longer."""
        for ref in self.waiting[: builder.count]:
            self.batcher.stats.of(ref.source, ref.epoch).good()
        del self.waiting[: builder.count]
        self.builder = None
        return builder.batch()


class BucketBatcher:
    """Sorts samples into buckets, from which batches are taken, and counts samples that cannot be used.

    A row's random numbers depend on `seed` and the sample's source, epoch and key, and on nothing else.
    """

    def __init__(self, *, prepare: Prepare, seed: int, stats: StreamStats) -> None:
        self.prepare, self.seed, self.stats, self.pool = prepare, seed, stats, BufferPool()
        self.buckets: dict[Hashable, Bucket] = {}
        self.undecodable_in_a_row = 0

    def add(self, ref: SampleRef) -> Bucket | None:
        """The bucket that the sample was added to; None for one that cannot be used."""
        try:
            key = self.prepare.bucket(ref.sample)
        except ValueError as error:
            return self.count_bad(ref, error)
        bucket = self.buckets.setdefault(key, Bucket(key, self))
        bucket.waiting.append(ref)
        return bucket

    def row(self, ref: SampleRef, key: Hashable) -> Batch | None:
        """The sample's row in a batch of bucket `key`; None where it cannot be made."""
        rng = random.Random(f"{self.seed}/{ref.source}/{ref.epoch}/{ref.sample.key}")
        try:
            row, self.undecodable_in_a_row = self.prepare.row(ref.sample, key, rng), 0
        except ValueError as error:
            self.undecodable_in_a_row += 1
            return self.count_bad(ref, error)
        return row

    def count_bad(self, ref: SampleRef, error: ValueError) -> None:
        bad, stats = BadSample.from_error(error), self.stats.of(ref.source, ref.epoch)
        stats.add(bad.reason, key=ref.sample.key, shard=ref.sample.url, detail=bad.detail)

    def waiting(self) -> list[SampleIndex]:
        """Where the waiting samples lie, bucket by bucket, in the order of each."""
        return [ref.index for bucket in self.buckets.values() for ref in bucket.waiting]
