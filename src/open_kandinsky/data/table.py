"""A whole set of shards read into memory."""

import random
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.memory import Batch, Table
from open_kandinsky.data.pairs.rows import Pairs
from open_kandinsky.data.streaming.once import Once, OnceLoader
from open_kandinsky.data.tars.sample import Raw, read_info
from open_kandinsky.data.tars.tar import TarShards

READ_BATCH = 256
LABELS = ("key", "caption", "group")


@dataclass(frozen=True)
class Grouped:
    """Pairs, each with the group that its json names."""

    pairs: Pairs

    def bucket(self, raw: Raw) -> Hashable:
        return self.pairs.bucket(raw)

    def row(self, raw: Raw, bucket: Hashable, draws: random.Random) -> Batch:
        group = read_info(raw).get("group")
        return self.pairs.row(raw, bucket, draws) | {"group": None if group is None else str(group)}


def read_table(
    shards: TarShards, prepare: Pairs, *, workers: int, max_bad_share: float, seed: int
) -> tuple[Table, list[str | None]]:
    """Every usable sample of `shards`, sorted by key so that any number of workers gives the same, and its group.

    Raises ValueError where there is none, and where their shapes differ.
    """
    once = Once(shards=shards, prepare=Grouped(prepare), batch_size=READ_BATCH, seed=seed)
    read = list(OnceLoader(once=once, workers=workers, max_bad_share=max_bad_share, process=0, processes=1))
    if not read:
        urls = shards.index.urls
        raise UserError(f"no sample in {len(urls)} shard(s), the first is {urls[0]!r}: are they img2dataset's?")
    key, caption, group = ([one for batch in read for one in batch[name]] for name in LABELS)
    rows = sorted(range(len(key)), key=key.__getitem__)
    columns = {name: joined(name, [batch.pop(name) for batch in read], rows) for name in set(read[0]) - set(LABELS)}
    return Table(columns, [caption[row] for row in rows], [key[row] for row in rows]), [group[row] for row in rows]


def joined(name: str, columns: list[Tensor], rows: list[int]) -> Tensor:
    """One column in another order. Raises ValueError where the shapes differ."""
    shapes = {tuple(column.shape[1:]) for column in columns}
    if len(shapes) > 1:
        raise UserError(f"in_memory=true needs one shape, {name} has {sorted(shapes)}: set buckets=none, or stream")
    return torch.cat(columns)[torch.tensor(rows)]
