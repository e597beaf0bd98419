"""A cache's folder: shards, a manifest, channel statistics and null conditions; and its examples as a stream.

`begin` and `finish` are how a folder is made: one without a manifest is unfinished. `CacheShards` and `PrepareCached`
stream a cache that is too large for memory: shards are mapped, and only the rows that a batch needs are read.
"""

import hashlib
import json
import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.cache.rows import CAPTION_FROM, RAGGED, CacheRows, batch_shapes
from open_kandinsky.data.cache.shard import (
    FORMAT,
    Fields,
    RunningMoments,
    read_about,
    read_moments,
    refuse_format,
)
from open_kandinsky.data.cache.table import read_columns
from open_kandinsky.data.memory import Batch

BEGUN, MANIFEST = "begun.json", "manifest.json"
STATISTICS, NULL = "statistics.safetensors", "null.safetensors"
REMEDY = "run `open-kandinsky precompute` to make it"


def shard_files(folder: str | Path) -> list[Path]:
    """The shards of a folder, by name."""
    return sorted(path for path in Path(folder).glob("[!.]*.safetensors") if path.name not in (STATISTICS, NULL))


def begun(folder: str | Path) -> dict[str, Any] | None:
    """The recipe that a folder was begun with; None for a new folder."""
    path = Path(folder) / BEGUN
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def begin(folder: str | Path, recipe: Mapping[str, Any]) -> None:
    """Begins a folder, or continues one of the same recipe (encoder hashes, sizes, ...).

    Raises UserError for a folder of another recipe: their shards do not belong together.
    """
    before = begun(folder)
    if before is None:
        files.write(Path(folder) / BEGUN, json.dumps({"format": FORMAT, **recipe}, indent=2) + "\n")
        return
    refuse_format(before.get("format"), folder)
    if different := differences(before, {"format": FORMAT, **recipe}):
        raise UserError(f"{str(folder)!r} was begun with {different}: delete it, or write to another folder")


def differences(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> str:
    """The entries in which two recipes differ, as text; empty where they are equal."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        one, other = before.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found.append(differences(one, other, f"{within}{name}."))
        elif one != other:
            found.append(f"{within}{name}={one}, not {other}")
    return "; ".join(filter(None, found))


def write_null(folder: str | Path, null: Mapping[str, Tensor]) -> None:
    """Writes the null conditions, a batch of one."""
    files.write_tensors(Path(folder) / NULL, {name: value.cpu().contiguous() for name, value in null.items()})


def finish(folder: str | Path, facts: Mapping[str, Any], shards: Sequence[Path]) -> None:
    """Completes a folder that has its null conditions: statistics of fields with channels, then the manifest.

    The manifest comes last: a folder without one is unfinished. The statistics are the same to the bit in any process,
    since shards are merged in their order. Raises UserError where the shards disagree, or hold nothing.
    """
    manifest = manifest_of(folder, facts, shards)
    moments: dict[str, RunningMoments] = {}
    for name in manifest["shards"]:
        for field, some in read_moments(Path(folder) / name).items():
            moments.setdefault(field, RunningMoments(dim=len(some.mean))).merge(some)
    statistics = {f"{field}.mean": m.mean.float() for field, m in sorted(moments.items())}
    statistics |= {f"{field}.std": m.std.float() for field, m in sorted(moments.items())}
    files.write_tensors(Path(folder) / STATISTICS, statistics)
    files.write(Path(folder) / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def finished(folder: str | Path, facts: Mapping[str, Any], shards: Sequence[Path]) -> bool:
    """Whether the folder is complete with exactly these shards."""
    path = Path(folder) / MANIFEST
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")) == manifest_of(folder, facts, shards)


def manifest_of(folder: str | Path, facts: Mapping[str, Any], shards: Sequence[Path]) -> dict[str, Any]:
    """`facts`, and the fields, shapes, types and counts of `shards` in their order; shards without images are left out.

    `made_of` is a hash of the shards' headers, since other shards may have the same names.
    """
    about = {path.name: read_about(path) for path in shards}
    filled = {name: one for name, one in about.items() if one["images"]}
    fields = agreed_fields(folder, {name: one["fields"] for name, one in filled.items()})
    positions = int(read_null(folder)[RAGGED].shape[1])
    found = {"positions": positions, "fields": batch_shapes(fields, positions)}
    found |= {"count": sum(one["images"] for one in filled.values())}
    found |= {"captions_count": sum(one["captions"] for one in filled.values())}
    found |= {"made_of": hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()}
    return {"format": FORMAT, **facts, **found, "shards": {name: one["images"] for name, one in filled.items()}}


def agreed_fields(folder: str | Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that every shard has. Raises UserError for no shard, and for one with other fields."""
    if not fields:
        raise UserError(f"no example in the shards of {str(folder)!r}: {REMEDY}")
    first, agreed = next(iter(fields.items()))
    for name, found in fields.items():
        if found != agreed:
            raise UserError(f"in {str(folder)!r} {name} holds {found}, but {first} {agreed}: delete one of them")
    return agreed


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Raises ValueError where the folder is missing, unfinished, or another version's."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}: {REMEDY}")
    if not (folder / MANIFEST).is_file():
        state = f"{len(shard_files(folder))} shard(s) but no {MANIFEST}"
        raise UserError(f"{str(folder)!r} has {state}, so it is unfinished: run `open-kandinsky precompute` again")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{str(folder / MANIFEST)!r} is damaged ({error}): delete it and precompute again") from error
    refuse_format(manifest.get("format"), folder)
    return manifest


def read_statistics(folder: str | Path, field: str) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Mean and standard deviation of a field's channels. Raises ValueError where the folder has none."""
    found = read_tensors(folder, STATISTICS)
    if f"{field}.mean" not in found:
        raise UserError(f"{str(folder)!r} has no statistics of {field}: precompute {field} into this folder")
    return found[f"{field}.mean"], found[f"{field}.std"]


def read_null(folder: str | Path) -> dict[str, Tensor]:
    """The null conditions, a batch of one. Raises ValueError where the folder has none."""
    return read_tensors(folder, NULL)


def read_tensors(folder: str | Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(Path(folder) / name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"no {name} in {str(folder)!r} ({error}): {REMEDY}") from error


class CachedExample(NamedTuple):
    """One image of a shard that is mapped into memory; `url` is the shard's path."""

    rows: CacheRows
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

    def read(self, shard: int, wanted: Sequence[int], stats: object) -> Iterator[tuple[int, CachedExample]]:
        """Position and example of each position `wanted`, ascending. A cache has no bad samples to count.

        Raises UserError for a shard that is missing, damaged or not the manifest's.
        """
        path = self.folder / self.names[shard]
        rows = read_columns(path, self.fields, count=self.counts[shard])
        yield from ((at, CachedExample(rows, at, str(path))) for at in wanted)


class PrepareCached:
    """Makes rows of a batch of cached examples."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields

    def bucket(self, example: CachedExample) -> Hashable:
        """The latent's shape, where there are latents, which all rows of a batch have in common."""
        z = example.rows.columns.get("z")
        return None if z is None else tuple(z.shape[1:])

    def row(self, example: CachedExample, bucket: Hashable, rng: random.Random) -> Batch:
        """Floats as float32; one of the image's captions, drawn where it has several."""
        rows, at, _ = example
        start, stop = rows.columns[CAPTION_FROM][at : at + 2].tolist()
        caption = start if stop - start == 1 else rng.randrange(start, stop)
        fields = self.fields.of(rows, torch.tensor([at]), torch.tensor([caption]))
        row: Batch = {name: column[0] for name, column in fields.items()}
        return row | {"caption": rows.caption[caption], "key": rows.key[at]}
