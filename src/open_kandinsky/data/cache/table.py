"""A whole set of shards read into memory.

A cache held in memory, of which a batch is a few indexed copies.
"""

import random
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.cache.rows import CAPTION_FROM, CacheRows, concat_rows, some_rows
from open_kandinsky.data.cache.shard import Fields, read_shard
from open_kandinsky.data.memory import Batch, Table
from open_kandinsky.data.pairs import Pairs
from open_kandinsky.data.stream.loader import SequentialReader, sequential_loader
from open_kandinsky.data.tar.reader import TarShards
from open_kandinsky.data.tar.sample import Raw, read_info

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
    reader = SequentialReader(shards=shards, prepare=Grouped(prepare), batch_size=READ_BATCH, seed=seed)
    read = list(sequential_loader(reader, workers=workers, max_bad_share=max_bad_share, rank=0, processes=1))
    if not read:
        urls = shards.index.urls
        raise UserError(f"no sample in {len(urls)} shard(s), the first is {urls[0]!r}: are they img2dataset's?")
    key, caption, group = ([one for batch in read for one in batch[name]] for name in LABELS)
    rows = sorted(range(len(key)), key=key.__getitem__)
    columns = {
        name: concat_columns(name, [batch.pop(name) for batch in read], rows) for name in set(read[0]) - set(LABELS)
    }
    return Table(columns, [caption[row] for row in rows], [key[row] for row in rows]), [group[row] for row in rows]


def concat_columns(name: str, columns: list[Tensor], rows: list[int]) -> Tensor:
    """One column in another order. Raises ValueError where the shapes differ."""
    shapes = {tuple(column.shape[1:]) for column in columns}
    if len(shapes) > 1:
        found = sorted(shapes)
        raise UserError(f"in_memory=true needs one shape, {name} has {found}: set data/buckets=none, or stream")
    return torch.cat(columns)[torch.tensor(rows)]


Choose = Callable[[int, str, int], int]  # epoch, key, how many captions an image has -> which of them


@dataclass(frozen=True)
class CaptionPerEpoch:
    """A caption drawn anew each epoch; `seed`, the epoch and the image's key decide."""

    seed: int

    def __call__(self, epoch: int, key: str, count: int) -> int:
        return random.Random(f"{self.seed}/{epoch}/{key}").randrange(count) if count > 1 else 0


def first_caption(epoch: int, key: str, count: int) -> int:
    """For validation, which is to be the same each time."""
    return 0


class CachedTable:
    """`rows` in memory, half precision kept half until a batch is made."""

    def __init__(self, rows: CacheRows, fields: Fields, choose: Choose) -> None:
        self.rows, self.fields, self.choose = rows, fields, choose
        self.key = rows.key

    def batch(self, rows: list[int], epoch: int) -> Batch:
        """One batch, as in data/batch.py: these images, each with one of its captions."""
        captions = self.captions(rows, epoch)
        batch: Batch = dict(self.fields.of(self.rows, torch.tensor(rows), torch.tensor(captions)))
        caption = [self.rows.caption[at] for at in captions]
        return batch | {"caption": caption, "key": [self.key[row] for row in rows]}

    def captions(self, rows: list[int], epoch: int) -> list[int]:
        """The place of each image's caption among all captions."""
        first = self.rows.columns[CAPTION_FROM]
        ends = zip(rows, first[rows].tolist(), first[torch.tensor(rows) + 1].tolist(), strict=True)
        return [start + self.choose(epoch, self.key[row], stop - start) for row, start, stop in ends]


def read_rows(folder: str | Path, manifest: Mapping[str, Any], fields: Fields, limit: int | None) -> CacheRows:
    """The first `limit` examples (None: all) of a finished folder, copied into memory.

    Shards are mapped and copied once, by torch.cat. ValueError for one that is missing, damaged or not the manifest's.
    """
    left = manifest["count"] if limit is None else min(limit, manifest["count"])
    parts = []
    for name, count in manifest["shards"].items():
        if left > 0:
            rows = only(read_shard(Path(folder) / name), fields)
            if len(rows.key) != count:
                told = f"has {len(rows.key)} examples, the manifest says {count}"
                raise UserError(f"{str(Path(folder) / name)!r} {told}: precompute again")
            parts.append(some_rows(rows, 0, min(left, count)))
            left -= count
    return concat_rows(parts)


def only(rows: CacheRows, fields: Fields) -> CacheRows:
    columns: dict[str, Tensor] = {name: rows.columns[name] for name in fields.stored}
    return rows._replace(columns=columns)
