"""Image and caption pairs from img2dataset tar shards, streamed or held in memory."""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from lightning import LightningDataModule
from PIL import Image
from torch import Tensor

from open_kandinsky.data.memory import Batch, MemoryLoader, Table, batches_trained
from open_kandinsky.data.order import DistinctOrder, FixedOrder, ShuffledOrder, process
from open_kandinsky.data.reading import Sample, Skipped, read_samples
from open_kandinsky.data.stream import Fields, OncePlan, Reader, StreamLoader, TrainPlan, to_row
from open_kandinsky.data.urls import shard_urls

__all__ = ["Sample", "ShardData", "Skipped", "read_samples", "read_table", "shard_urls"]

READ_BATCH = 256


class ShardData(LightningDataModule):
    """Training and validation batches (`ImageBatch`) of shards; `fields`: name of a pixel field -> its transform.

    `in_memory` reads every sample once and keeps the tensors, in every process: for sets that fit. `distinct_captions`
    (in memory only) keeps captions in a batch distinct and samples that share a json `group` together. A run that is
    resumed goes on at the batch where it stopped.

    Raises ValueError for urls that name no shard, for more bad samples than `max_bad_share`, and where there are too
    few samples for one batch.
    """

    def __init__(
        self,
        *,
        urls: str | list[str],
        val_urls: str | list[str] | None,
        fields: dict[str, Callable[[Image.Image], Tensor]],
        batch_size: int,
        workers: int,
        shuffle_buffer: int,
        in_memory: bool,
        distinct_captions: bool,
        max_bad_share: float,
        seed: int,
        allow_pipe: bool,
    ) -> None:
        super().__init__()
        if distinct_captions and not in_memory:
            raise ValueError(
                "distinct_captions=true needs in_memory=true: a stream does not know what is still to come"
            )
        self.shards = shard_urls(urls, allow_pipe=allow_pipe)
        self.val_shards = [] if val_urls is None else shard_urls(val_urls, allow_pipe=allow_pipe)
        self.fields, self.batch_size, self.workers = fields, batch_size, workers
        self.shuffle_buffer, self.seed, self.max_bad_share = shuffle_buffer, seed, max_bad_share
        self.in_memory, self.distinct_captions = in_memory, distinct_captions
        self.train_loader: MemoryLoader | StreamLoader | None = None
        self.resumed: dict[str, int] = {}

    @cached_property
    def table(self) -> tuple[Table, list[str | None]]:
        """The training set in memory, and the group of each row."""
        return self.read(self.shards)

    @cached_property
    def val_table(self) -> Table:
        return self.read(self.val_shards)[0]

    def read(self, shards: list[str]) -> tuple[Table, list[str | None]]:
        return read_table(shards, self.fields, workers=self.workers, max_bad_share=self.max_bad_share)

    def state_dict(self) -> dict[str, int]:
        """Lightning's own copy of the loader's state is not loaded after a checkpoint at the end of an epoch."""
        return {} if self.train_loader is None else self.train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.resumed = state_dict

    def train_dataloader(self) -> MemoryLoader | StreamLoader:
        self.train_loader = self.memory_loader() if self.in_memory else self.stream_loader()
        if self.resumed:
            self.train_loader.load_state_dict(self.resumed)
        return self.train_loader

    def memory_loader(self) -> MemoryLoader:
        return MemoryLoader(table=self.table[0], order=self.order(), trained=partial(batches_trained, self))

    def stream_loader(self) -> StreamLoader:
        plan = TrainPlan(shards=self.shards, buffer=self.shuffle_buffer, seed=self.seed)
        trained = partial(batches_trained, self)
        return StreamLoader(plan=plan, reader=self.reader(), workers=self.workers, trained=trained)

    def val_dataloader(self) -> MemoryLoader | StreamLoader | list[Any]:
        if not self.val_shards:
            return []
        if not self.in_memory:
            plan = OncePlan(shards=self.val_shards, process=process()[0], processes=process()[1])
            return StreamLoader(plan=plan, reader=self.reader(), workers=self.workers, trained=int)
        order = FixedOrder(rows=len(self.val_table.key), batch_size=self.batch_size)
        return MemoryLoader(table=self.val_table, order=order, trained=int)

    def reader(self) -> Reader:
        make_row = partial(to_row, fields=self.fields)
        return Reader(make_row=make_row, batch_size=self.batch_size, max_bad_share=self.max_bad_share)

    def order(self) -> ShuffledOrder | DistinctOrder:
        table, groups = self.table
        if not self.distinct_captions:
            return ShuffledOrder(rows=len(table.key), batch_size=self.batch_size, seed=self.seed)
        return DistinctOrder(captions=table.caption, groups=groups, batch_size=self.batch_size, seed=self.seed)


def read_table(
    shards: list[str], fields: Fields, *, workers: int, max_bad_share: float
) -> tuple[Table, list[str | None]]:
    """Every usable sample of `shards`, sorted by key so that any number of workers gives the same, and its group."""
    plan = OncePlan(shards=shards, process=0, processes=1)
    reader = Reader(make_row=partial(to_grouped_row, fields=fields), batch_size=READ_BATCH, max_bad_share=max_bad_share)
    read = list(StreamLoader(plan=plan, reader=reader, workers=min(workers, len(shards)), trained=int))
    if not read:
        raise ValueError(f"no sample in {len(shards)} shard(s), the first is {shards[0]!r}: are they img2dataset's?")
    key, caption, group = ([one for batch in read for one in batch[name]] for name in ("key", "caption", "group"))
    rows = sorted(range(len(key)), key=key.__getitem__)
    columns = {name: torch.cat([batch.pop(name) for batch in read])[torch.tensor(rows)] for name in fields}
    table = Table(columns, [caption[row] for row in rows], [key[row] for row in rows])
    return table, [group[row] for row in rows]


def to_grouped_row(sample: Sample, *, fields: Fields) -> Batch:
    """A row with the group that the sample's json names."""
    group = sample.info.get("group")
    return to_row(sample, fields=fields) | {"group": None if group is None else str(group)}
