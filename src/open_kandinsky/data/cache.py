"""Batches of precomputed embeddings and latents."""

from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from lightning import LightningDataModule
from torch import Tensor

from open_kandinsky.data.cache_files import labels, opened, read_manifest, read_null, read_statistics
from open_kandinsky.data.memory import MemoryLoader, Table, batches_trained
from open_kandinsky.data.order import FixedOrder, ShuffledOrder


def read_table(folder: str | Path, fields: list[str], limit: int | None) -> Table:
    """The first `limit` examples (None: all) of a finished folder. Raises ValueError where it lacks something."""
    manifest = read_manifest(folder)
    missing = [name for name in fields if name not in manifest["fields"]]
    if missing:
        held = ", ".join(manifest["fields"])
        raise ValueError(f"{str(folder)!r} has no {', '.join(missing)}: it holds {held}; precompute what is missing")
    rows = min(manifest["count"], manifest["count"] if limit is None else limit)
    table = Table({}, [], [])
    for name, count in manifest["shards"].items():
        if len(table.key) < rows:
            append(table, Path(folder) / name, fields, expected=count, rows=rows)
    return table


def append(table: Table, path: Path, fields: list[str], *, expected: int, rows: int) -> None:
    """Copies one shard into a table that will have `rows`, whose space is taken once, with the first shard."""
    with opened(path) as shard:
        keys, captions = labels(shard)
        if len(keys) != expected:
            raise ValueError(f"{str(path)!r} has {len(keys)} examples, the manifest says {expected}: precompute again")
        at, n = len(table.key), min(expected, rows - len(table.key))
        for name in fields:
            values = shard.get_slice(name)[:n]
            column = table.columns.setdefault(name, values.new_empty(rows, *values.shape[1:]))
            column[at : at + n] = values
    table.key.extend(keys[:n])
    table.caption.extend(captions[:n])


class CachedData(LightningDataModule):
    """Batches (`EmbeddingBatch`, `LatentBatch`) of a precomputed folder, held in memory; half precision is kept half.

    `fields`: the columns wanted; `limit`: only the first so many training examples (None: all). Raises ValueError for
    a folder that is missing, unfinished, damaged or lacks a field, and for fewer examples than one batch.
    """

    def __init__(
        self,
        *,
        path: str,
        val_path: str | None,
        fields: list[str],
        batch_size: int,
        limit: int | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.path, self.val_path, self.fields = path, val_path, list(fields)
        self.batch_size, self.limit, self.seed = batch_size, limit, seed
        self.train_loader: MemoryLoader | None = None
        self.resumed: dict[str, int] = {}

    @cached_property
    def table(self) -> Table:
        return read_table(self.path, self.fields, self.limit)

    @cached_property
    def val_table(self) -> Table:
        assert self.val_path is not None, "asked for by val_dataloader only"
        return read_table(self.val_path, self.fields, None)

    def statistics(self, field: str) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Mean and standard deviation of a field's channels over the whole training folder."""
        return read_statistics(self.path, field)

    @property
    def null(self) -> dict[str, Tensor]:
        """For each condition among `fields`, the condition of nothing: a batch of one."""
        return {name: value for name, value in read_null(self.path).items() if name in self.fields}

    def state_dict(self) -> dict[str, int]:
        """Lightning's own copy of the loader's state is not loaded after a checkpoint at the end of an epoch."""
        return {} if self.train_loader is None else self.train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.resumed = state_dict

    def train_dataloader(self) -> MemoryLoader:
        order = ShuffledOrder(rows=len(self.table.key), batch_size=self.batch_size, seed=self.seed)
        self.train_loader = MemoryLoader(table=self.table, order=order, trained=partial(batches_trained, self))
        if self.resumed:
            self.train_loader.load_state_dict(self.resumed)
        return self.train_loader

    def val_dataloader(self) -> MemoryLoader | list[Any]:
        if self.val_path is None:
            return []
        order = FixedOrder(rows=len(self.val_table.key), batch_size=self.batch_size)
        return MemoryLoader(table=self.val_table, order=order, trained=int)
