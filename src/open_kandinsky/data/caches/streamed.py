"""A cache too large for memory, as a stream of examples: shards are mapped, and only what is wanted is read."""

import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.caches.fields import Fields
from open_kandinsky.data.caches.rows import CAPTION_FROM, Rows
from open_kandinsky.data.caches.shard import read_shard
from open_kandinsky.data.caches.table import only
from open_kandinsky.data.memory import Batch


class Example(NamedTuple):
    """One image of a shard that is mapped into memory; `url` is the shard's path."""

    rows: Rows
    at: int
    url: str

    @property
    def key(self) -> str:
        return self.rows.key[self.at]


class CacheShards:
    """The shards of a finished cache, in the manifest's order."""

    def __init__(self, *, folder: str | Path, manifest: Mapping[str, Any], fields: Fields) -> None:
        self.folder, self.fields = Path(folder), fields
        self.names, self.counts = list(manifest["shards"]), list(manifest["shards"].values())

    def read(self, shard: int, wanted: Sequence[int], tally: object) -> Iterator[tuple[int, Example]]:
        """Position and example of each of `wanted`, ascending. A cache has nothing that cannot be used to tally.

        ValueError for a shard that is missing, damaged or not the manifest's.
        """
        path = self.folder / self.names[shard]
        rows = only(read_shard(path), self.fields)
        if len(rows.key) != self.counts[shard]:
            told = f"has {len(rows.key)} examples, the manifest says {self.counts[shard]}"
            raise UserError(f"{str(path)!r} {told}: precompute again")
        yield from ((at, Example(rows, at, str(path))) for at in wanted)


class PrepareCached:
    """From an example to a row of a batch."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields

    def bucket(self, example: Example) -> Hashable:
        """What the rows of one batch have in common: the latent's shape, where there are latents."""
        z = example.rows.columns.get("z")
        return None if z is None else tuple(z.shape[1:])

    def row(self, example: Example, bucket: Hashable, draws: random.Random) -> Batch:
        """Half precision widened to float32; one of the image's captions, drawn where it has several."""
        rows, at, _ = example
        start, stop = rows.columns[CAPTION_FROM][at : at + 2].tolist()
        caption = start if stop - start == 1 else draws.randrange(start, stop)
        fields = self.fields.of(rows, torch.tensor([at]), torch.tensor([caption]))
        row: Batch = {name: column[0] for name, column in fields.items()}
        return row | {"caption": rows.caption[caption], "key": rows.key[at]}
