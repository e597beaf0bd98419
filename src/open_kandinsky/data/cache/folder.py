"""A cache on disk: a folder of shards, a manifest, statistics, and the conditions of nothing.

A cache too large for memory, as a stream of examples: shards are mapped, and only what is wanted is read.
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
    read_shard,
    refuse_format,
)
from open_kandinsky.data.cache.table import only
from open_kandinsky.data.memory import Batch

BEGUN, MANIFEST = "begun.json", "manifest.json"
STATISTICS, NULL = "statistics.safetensors", "null.safetensors"
REMEDY = "run `open-kandinsky precompute` to make it"


def shard_files(folder: str | Path) -> list[Path]:
    """The shards of a folder, by name."""
    return sorted(path for path in Path(folder).glob("[!.]*.safetensors") if path.name not in (STATISTICS, NULL))


def begun(folder: str | Path) -> dict[str, Any] | None:
    """The recipe that a folder was begun with; None where it was not."""
    path = Path(folder) / BEGUN
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def begin(folder: str | Path, recipe: Mapping[str, Any]) -> None:
    """Opens a folder, or one that was begun with the same recipe (encoder hashes, sizes, ...).

    Raises ValueError where it was begun with another: what that made does not belong beside what this would make.
    """
    before = begun(folder)
    if before is None:
        files.write(Path(folder) / BEGUN, json.dumps({"format": FORMAT, **recipe}, indent=2) + "\n")
        return
    refuse_format(before.get("format"), folder)
    if told := differences(before, {"format": FORMAT, **recipe}):
        raise UserError(f"{str(folder)!r} was begun with {told}: delete it, or write to another folder")


def differences(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> str:
    """What two recipes differ in, named; empty where in nothing."""
    told = []
    for name in sorted(before.keys() | now.keys()):
        one, other = before.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            told.append(differences(one, other, f"{within}{name}."))
        elif one != other:
            told.append(f"{within}{name}={one}, not {other}")
    return "; ".join(filter(None, told))


def write_null(folder: str | Path, null: Mapping[str, Tensor]) -> None:
    """The conditions of nothing, a batch of one."""
    files.write_tensors(Path(folder) / NULL, {name: value.cpu().contiguous() for name, value in null.items()})


def finish(folder: str | Path, facts: Mapping[str, Any], shards: Sequence[Path]) -> None:
    """Closes a folder that has its null conditions: the statistics of fields that have channels, then the manifest.

    The manifest comes last: a folder without one is unfinished. Raises ValueError where the shards disagree, or hold
    nothing.
    """
    manifest = manifest_of(folder, facts, shards)
    write_statistics(folder, merged_moments([Path(folder) / name for name in manifest["shards"]]))
    files.write(Path(folder) / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def finished(folder: str | Path, facts: Mapping[str, Any], shards: Sequence[Path]) -> bool:
    """Whether that has been done, with these very shards."""
    path = Path(folder) / MANIFEST
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")) == manifest_of(folder, facts, shards)


def manifest_of(folder: str | Path, facts: Mapping[str, Any], shards: Sequence[Path]) -> dict[str, Any]:
    """`facts`, with the fields, shapes, types and counts found in `shards`, in their order; those without any are out.

    `made_of` tells these shards from others of the same names.
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
    """What all shards hold. ValueError where there is none, and where one holds something else."""
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


def merged_moments(shards: Sequence[Path]) -> dict[str, RunningMoments]:
    """Of all shards, from what is stored with each: the same to the bit whoever merges, since the order is given."""
    total: dict[str, RunningMoments] = {}
    for path in shards:
        for name, moments in read_moments(path).items():
            total.setdefault(name, RunningMoments(dim=len(moments.mean))).merge(moments)
    return total


def write_statistics(folder: str | Path, moments: Mapping[str, RunningMoments]) -> None:
    """Mean and standard deviation of fields, as float32."""
    statistics = {f"{name}.mean": m.mean.float() for name, m in sorted(moments.items())}
    statistics |= {f"{name}.std": m.std.float() for name, m in sorted(moments.items())}
    files.write_tensors(Path(folder) / STATISTICS, statistics)


def read_statistics(folder: str | Path, field: str) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Mean and standard deviation of a field's channels. Raises ValueError where the folder has none."""
    found = read_beside(folder, STATISTICS)
    if f"{field}.mean" not in found:
        raise UserError(f"{str(folder)!r} has no statistics of {field}: precompute {field} into this folder")
    return found[f"{field}.mean"], found[f"{field}.std"]


def read_null(folder: str | Path) -> dict[str, Tensor]:
    """The null conditions, a batch of one. Raises ValueError where the folder has none."""
    return read_beside(folder, NULL)


def read_beside(folder: str | Path, name: str) -> dict[str, Tensor]:
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
        """Position and example of each of `wanted`, ascending. A cache has nothing that cannot be used to tally.

        ValueError for a shard that is missing, damaged or not the manifest's.
        """
        path = self.folder / self.names[shard]
        rows = only(read_shard(path), self.fields)
        if len(rows.key) != self.counts[shard]:
            told = f"has {len(rows.key)} examples, the manifest says {self.counts[shard]}"
            raise UserError(f"{str(path)!r} {told}: precompute again")
        yield from ((at, CachedExample(rows, at, str(path))) for at in wanted)


class PrepareCached:
    """From an example to a row of a batch."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields

    def bucket(self, example: CachedExample) -> Hashable:
        """What the rows of one batch have in common: the latent's shape, where there are latents."""
        z = example.rows.columns.get("z")
        return None if z is None else tuple(z.shape[1:])

    def row(self, example: CachedExample, bucket: Hashable, draws: random.Random) -> Batch:
        """Half precision widened to float32; one of the image's captions, drawn where it has several."""
        rows, at, _ = example
        start, stop = rows.columns[CAPTION_FROM][at : at + 2].tolist()
        caption = start if stop - start == 1 else draws.randrange(start, stop)
        fields = self.fields.of(rows, torch.tensor([at]), torch.tensor([caption]))
        row: Batch = {name: column[0] for name, column in fields.items()}
        return row | {"caption": rows.caption[caption], "key": rows.key[at]}
