"""One shard of a cache: a safetensors file that holds its rows, their moments, and what they were made from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.caches.rows import Rows, field_shapes
from open_kandinsky.data.moments import Moments

FORMAT = 2  # of the files; 1 had one caption an image, and no account of what it was made from
ABOUT = "cache"  # one entry of metadata: safetensors writes several in another order each time
LABELS = "labels"  # captions and keys as bytes of JSON: in the header they would be read with it
STANDARDISED = ("image_emb", "z")  # what a diffusion model may want at mean 0 and deviation 1


def write_shard(path: str | Path, rows: Rows, about: Mapping[str, Any]) -> None:
    """The rows made of one input shard: all of them or no file. The same rows and `about` are the same bytes.

    Where another process has written the same shard meanwhile, it stays. Raises ValueError where `path` is made of
    something else, or lengths disagree.
    """
    rows.check(str(path))
    if Path(path).exists():
        if all(name in about and read_about(path).get(name) == about[name] for name in ("recipe", "input")):
            return
        raise UserError(f"{str(path)!r} exists and is not overwritten: delete it to compute it again")
    moments = {name: of_channels(rows.columns[name]) for name in STANDARDISED if name in rows.columns}
    tensors = {name: column.detach().cpu().contiguous().clone() for name, column in rows.columns.items()}
    labels = json.dumps({"captions": rows.caption, "keys": rows.key}).encode()
    tensors |= {LABELS: torch.frombuffer(bytearray(labels), dtype=torch.uint8)} | as_tensors(moments)
    found = {"images": len(rows.key), "captions": len(rows.caption), "fields": field_shapes(rows)}
    metadata = {ABOUT: json.dumps({"format": FORMAT, **about, **found}, sort_keys=True)}
    files.write_tensors(path, tensors, metadata)


def read_shard(path: str | Path) -> Rows:
    """The rows as they were written, mapped into memory: what is not looked at is not read.

    Raises ValueError for a file that is not whole.
    """
    shard, _ = opened(path)
    labels = json.loads(bytes(shard.get_tensor(LABELS).numpy()))
    columns = {name: shard.get_tensor(name) for name in shard.keys() if name != LABELS and "." not in name}
    return Rows(columns, labels["captions"], labels["keys"])


def read_about(path: str | Path) -> dict[str, Any]:
    """What a shard was made from; its header alone is read."""
    return opened(path)[1]


def read_moments(path: str | Path) -> dict[str, Moments]:
    """Of every field that has channels."""
    shard, _ = opened(path)
    return from_tensors({name: shard.get_tensor(name) for name in shard.keys() if "." in name})


def opened(path: str | Path) -> tuple[Any, dict[str, Any]]:
    """A shard and what it was made from. ValueError for a file that is missing, not whole, of another kind or older."""
    try:
        shard = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{str(path)!r} is no whole shard ({error}): delete it and precompute again") from error
    metadata = shard.metadata() or {}
    if ABOUT not in metadata:
        older = "an older version made it" if "keys" in metadata else "it is no shard of a cache"
        raise UserError(f"{str(path)!r} cannot be used, {older}: move it elsewhere, and precompute again")
    about = json.loads(metadata[ABOUT])
    refuse_format(about["format"], path)
    return shard, about


def refuse_format(found: object, path: str | Path) -> None:
    """ValueError for files that another version wrote."""
    if found != FORMAT:
        told = f"{str(path)!r} has format {found or 1} and this version reads {FORMAT}"
        raise UserError(f"{told}: precompute into another folder, or delete it and precompute again")


def of_channels(values: Tensor) -> Moments:
    """Of every channel, which is dimension 1."""
    moments = Moments(dim=values.shape[1])
    moments.update(rearrange(values, "b c ... -> b ... c").flatten(0, -2))
    return moments


def as_tensors(moments: Mapping[str, Moments]) -> dict[str, Tensor]:
    parts = {name: (torch.tensor([m.count]), m.mean, m.squares) for name, m in moments.items()}
    return {
        f"{name}.{part}": x for name in parts for part, x in zip(("count", "mean", "squares"), parts[name], strict=True)
    }


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Moments]:
    """Undoes `as_tensors`."""
    made = {}
    for name in {key.partition(".")[0] for key in tensors}:
        made[name] = Moments(dim=len(tensors[f"{name}.mean"]))
        made[name].count = int(tensors[f"{name}.count"])
        made[name].mean, made[name].squares = tensors[f"{name}.mean"], tensors[f"{name}.squares"]
    return made
