"""A cache held in memory, of which a batch is a few indexed copies."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.caches.fields import Fields
from open_kandinsky.data.caches.rows import CAPTION_FROM, Rows, joined, some_rows
from open_kandinsky.data.caches.shard import read_shard
from open_kandinsky.data.memory import Batch

Choose = Callable[[int, str, int], int]  # epoch, key, how many captions an image has -> which of them


@dataclass(frozen=True)
class Drawn:
    """A caption drawn anew each epoch; `seed`, the epoch and the image's key decide."""

    seed: int

    def __call__(self, epoch: int, key: str, count: int) -> int:
        return random.Random(f"{self.seed}/{epoch}/{key}").randrange(count) if count > 1 else 0


def first_caption(epoch: int, key: str, count: int) -> int:
    """For validation, which is to be the same each time."""
    return 0


class CachedTable:
    """`rows` in memory, half precision kept half until a batch is made."""

    def __init__(self, rows: Rows, fields: Fields, choose: Choose) -> None:
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


def read_rows(folder: str | Path, manifest: Mapping[str, Any], fields: Fields, limit: int | None) -> Rows:
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
    return joined(parts)


def only(rows: Rows, fields: Fields) -> Rows:
    columns: dict[str, Tensor] = {name: rows.columns[name] for name in fields.stored}
    return rows._replace(columns=columns)
