"""A cache on disk: a folder of safetensors shards, a manifest, statistics, and the conditions of nothing."""

import json
from pathlib import Path
from typing import Any

from einops import rearrange
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from open_kandinsky import atomic
from open_kandinsky.data.moments import Moments

BEGUN, MANIFEST = "begun.json", "manifest.json"
STATISTICS, NULL = "statistics.safetensors", "null.safetensors"
STANDARDISED = ("image_emb", "z")  # what a diffusion model may want at mean 0 and deviation 1
REMEDY = "run `open-kandinsky precompute` to make it"


def write_shard(path: str | Path, columns: dict[str, Tensor], keys: list[str], captions: list[str]) -> None:
    """The tensors of one input shard, equal in their first dimension: all of them or no file.

    Raises ValueError where `path` exists, or the lengths differ.
    """
    lengths = {name: len(column) for name, column in columns.items()} | {"keys": len(keys), "captions": len(captions)}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"columns of unequal length for {str(path)!r}: {lengths}")
    if Path(path).exists():
        raise ValueError(f"{str(path)!r} exists and is not overwritten: delete it to compute it again")
    tensors = {name: column.detach().cpu().contiguous().clone() for name, column in columns.items()}
    metadata = {"keys": json.dumps(keys), "captions": json.dumps(captions)}
    with atomic.replacing(path) as part:
        save_file(tensors, part, metadata=metadata)


def read_shard(path: str | Path) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Columns, keys and captions, as they were written. Raises ValueError for a file that is not whole."""
    with opened(path) as shard:
        keys, captions = labels(shard)
        return {name: shard.get_tensor(name) for name in shard.keys()}, keys, captions


def opened(path: str | Path) -> Any:
    """A shard, only its header read. Raises ValueError for a file that is missing, not whole, or not of this kind."""
    try:
        shard = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(path)!r} is no whole shard ({error}): delete it and precompute again") from error
    if "keys" not in (shard.metadata() or {}):
        raise ValueError(f"{str(path)!r} is no shard of a cache: it has no keys beside its tensors; move it elsewhere")
    return shard


def labels(shard: Any) -> tuple[list[str], list[str]]:
    """Keys and captions."""
    metadata = shard.metadata()
    return json.loads(metadata["keys"]), json.loads(metadata["captions"])


def shard_files(folder: str | Path) -> list[Path]:
    """The shards of a folder, by name."""
    return sorted(path for path in Path(folder).glob("[!.]*.safetensors") if path.name not in (STATISTICS, NULL))


def describe(path: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """A shard's count, and the shape (of one example) and type of each field."""
    with opened(path) as shard:
        slices = {name: shard.get_slice(name) for name in shard.keys()}
        fields = {name: {"shape": s.get_shape()[1:], "dtype": s.get_dtype()} for name, s in slices.items()}
        return len(labels(shard)[0]), fields


def begin(folder: str | Path, facts: dict[str, Any]) -> None:
    """Opens a folder, or one that was begun with the same facts (encoder hashes, sizes).

    Raises ValueError where it was begun with others: what they made does not belong beside what these would make.
    """
    path = Path(folder) / BEGUN
    if path.is_file() and (before := json.loads(path.read_text())) != facts:
        raise ValueError(f"{str(folder)!r} was begun with {before}, not {facts}: delete it, or write to another folder")
    atomic.write(path, json.dumps(facts))


def finish(folder: str | Path, facts: dict[str, Any], null: dict[str, Tensor]) -> None:
    """Closes a folder: the null conditions, the statistics of the fields that have channels, then the manifest.

    The manifest is `facts` with the fields, shapes, types and counts found in the shards. It comes last: a folder
    without one is unfinished. Raises ValueError where the shards disagree, or there is none.
    """
    found = {path.name: describe(path) for path in shard_files(folder)}
    if not found:
        raise ValueError(f"no shard in {str(folder)!r}: {REMEDY}")
    first, (_, fields) = next(iter(found.items()))
    for name, (_, others) in found.items():
        if others != fields:
            raise ValueError(f"in {str(folder)!r} {name} holds {others}, but {first} {fields}: delete one of them")
    tensors = {name: value.cpu().contiguous() for name, value in null.items()}
    with atomic.replacing(Path(folder) / NULL) as part:
        save_file(tensors, part)
    write_statistics(folder, {name: folder_moments(folder, name) for name in STANDARDISED if name in fields})
    counts = {name: count for name, (count, _) in found.items()}
    manifest = facts | {"fields": fields, "count": sum(counts.values()), "shards": counts}
    atomic.write(Path(folder) / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Raises ValueError where the folder is missing or unfinished."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r}: {REMEDY}")
    if not (folder / MANIFEST).is_file():
        state = f"{len(shard_files(folder))} shard(s) but no {MANIFEST}"
        raise ValueError(f"{str(folder)!r} has {state}, so it is unfinished: run `open-kandinsky precompute` again")
    try:
        return json.loads((folder / MANIFEST).read_text())
    except ValueError as error:
        raise ValueError(f"{str(folder / MANIFEST)!r} is damaged ({error}): delete it and precompute again") from error


def folder_moments(folder: str | Path, field: str) -> Moments:
    """Of every channel (dimension 1) of a field in a folder's shards."""
    total = None
    for path in shard_files(folder):
        with opened(path) as shard:
            rows = rearrange(shard.get_tensor(field), "b c ... -> b ... c").flatten(0, -2)
        total = total or Moments(dim=rows.shape[1])
        total.update(rows)
    assert total is not None, "finish has counted the shards"
    return total


def write_statistics(folder: str | Path, moments: dict[str, Moments]) -> None:
    """Mean and standard deviation of fields, as float32."""
    statistics = {f"{name}.mean": m.mean.float() for name, m in moments.items()}
    statistics |= {f"{name}.std": m.std.float() for name, m in moments.items()}
    with atomic.replacing(Path(folder) / STATISTICS) as part:
        save_file(statistics, part)


def read_statistics(folder: str | Path, field: str) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Mean and standard deviation of a field's channels. Raises ValueError where the folder has none."""
    found = read_beside(folder, STATISTICS)
    if f"{field}.mean" not in found:
        raise ValueError(f"{str(folder)!r} has no statistics of {field}: precompute {field} into this folder")
    return found[f"{field}.mean"], found[f"{field}.std"]


def read_null(folder: str | Path) -> dict[str, Tensor]:
    """The null conditions, a batch of one. Raises ValueError where the folder has none."""
    return read_beside(folder, NULL)


def read_beside(folder: str | Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(Path(folder) / name)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"no {name} in {str(folder)!r} ({error}): {REMEDY}") from error
