"""Data sets that are read into memory: tars by `read_table`, a cache by `read_rows` into a `CachedTable`."""

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
from open_kandinsky.data.stream.loader import SequentialLoader, SequentialReader
from open_kandinsky.data.tar.reader import TarShards
from open_kandinsky.data.tar.sample import Raw, read_info

READ_BATCH = 256
LABELS = ("key", "caption", "group")


@dataclass(frozen=True)
class Grouped:
    """Rows of pairs, each with the `group` of its json."""

    pairs: Pairs

    def bucket(self, raw: Raw) -> Hashable:
        return self.pairs.bucket(raw)

    def row(self, raw: Raw, bucket: Hashable, rng: random.Random) -> Batch:
        group = read_info(raw).get("group")
        return self.pairs.row(raw, bucket, rng) | {"group": None if group is None else str(group)}


def read_table(
    shards: TarShards, prepare: Pairs, *, workers: int, max_bad_share: float, seed: int
) -> tuple[Table, list[str | None]]:
    """Every usable sample of `shards` and its group, sorted by key: the same for any number of workers.

    Raises ValueError where there is none, and where their shapes differ.
    """
    reader = SequentialReader(shards=shards, prepare=Grouped(prepare), batch_size=READ_BATCH, seed=seed)
    workers = min(workers, sum(shards.counts))
    read = list(SequentialLoader(reader, workers=workers, max_bad_share=max_bad_share))
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
    """One column of all batches, in the order `rows`. Raises UserError where the shapes differ."""
    shapes = {tuple(column.shape[1:]) for column in columns}
    if len(shapes) > 1:
        found = sorted(shapes)
        raise UserError(f"in_memory=true needs one shape, {name} has {found}: set data/buckets=none, or stream")
    return torch.cat(columns)[torch.tensor(rows)]


Choose = Callable[[int, str, int], int]  # epoch, key, how many captions an image has -> which of them


@dataclass(frozen=True)
class CaptionPerEpoch:
    """Draws another caption each epoch, by `seed`, the epoch and the image's key."""

    seed: int

    def __call__(self, epoch: int, key: str, count: int) -> int:
        return random.Random(f"{self.seed}/{epoch}/{key}").randrange(count) if count > 1 else 0


def first_caption(epoch: int, key: str, count: int) -> int:
    """For validation, which is the same in each epoch."""
    return 0


class CachedTable:
    """A cache in memory, of which a batch is a few indexed copies. float16 is widened when a batch is made."""

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
        """The index among all captions of the caption of each image."""
        first = self.rows.columns[CAPTION_FROM]
        ends = zip(rows, first[rows].tolist(), first[torch.tensor(rows) + 1].tolist(), strict=True)
        return [start + self.choose(epoch, self.key[row], stop - start) for row, start, stop in ends]


def read_rows(folder: str | Path, manifest: Mapping[str, Any], fields: Fields, limit: int | None) -> CacheRows:
    """The first `limit` examples (None: all) of a finished folder, copied into memory.

    Shards are mapped and copied once, by torch.cat.
    """
    left, parts = manifest["count"] if limit is None else min(limit, manifest["count"]), []
    for name, count in manifest["shards"].items():
        if left > 0:
            rows = read_columns(Path(folder) / name, fields, count=count)
            parts.append(some_rows(rows, 0, min(left, count)))
            left -= count
    return concat_rows(parts)


def read_columns(path: Path, fields: Fields, *, count: int) -> CacheRows:
    """The columns of a shard that `fields` need. Raises UserError where it is missing, damaged, or not of `count`."""
    rows = read_shard(path)
    if len(rows.key) != count:
        wrong = f"has {len(rows.key)} examples, the manifest says {count}"
        raise UserError(f"{str(path)!r} {wrong}: precompute again")
    columns: dict[str, Tensor] = {name: rows.columns[name] for name in fields.stored}
    return rows._replace(columns=columns)
