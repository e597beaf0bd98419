"""Mean and standard deviation of a stream of vectors, in float64.

One shard of a cache: a safetensors file that holds its rows, their moments, and what they were made from.

From a cache's rows to the fields of a batch: text states padded again, half precision widened.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.cache.rows import (
    CAPTION_FROM,
    MASK,
    RAGGED,
    STATES_FROM,
    WORDS,
    CacheRows,
    before,
    field_shapes,
    is_text,
    padded,
)
from open_kandinsky.data.memory import widened


class RunningMoments:
    """Streaming and mergeable: each batch is centred on its own mean (Chan et al. 1979), so no large sums cancel."""

    def __init__(self, *, dim: int) -> None:
        self.count = 0
        self.mean: Float[Tensor, " d"] = torch.zeros(dim, dtype=torch.float64)
        self.squares: Float[Tensor, " d"] = torch.zeros(dim, dtype=torch.float64)

    def update(self, x: Shaped[Tensor, "b d"]) -> None:
        """Adds rows of any float type."""
        if len(x) == 0:
            return
        batch = RunningMoments(dim=x.shape[1])
        x = x.to("cpu", torch.float64)
        batch.count, batch.mean = len(x), x.mean(0)
        batch.squares = (x - batch.mean).square().sum(0)
        self.merge(batch)

    def merge(self, other: "RunningMoments") -> None:
        """Adds what another accumulator has seen."""
        count = self.count + other.count
        if count == 0:
            return
        gap = other.mean - self.mean
        self.squares = self.squares + other.squares + gap.square() * (self.count * other.count / count)
        self.mean = self.mean + gap * (other.count / count)
        self.count = count

    @property
    def std(self) -> Float[Tensor, " d"]:
        """Of the population (divided by the count), float64."""
        return (self.squares / self.count).sqrt()


FORMAT = 2  # of the files; 1 had one caption an image, and no account of what it was made from
ABOUT = "cache"  # one entry of metadata: safetensors writes several in another order each time
LABELS = "labels"  # captions and keys as bytes of JSON: in the header they would be read with it
STANDARDISED = ("image_emb", "z")  # what a diffusion model may want at mean 0 and deviation 1


def write_shard(path: str | Path, rows: CacheRows, about: Mapping[str, Any]) -> None:
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


def read_shard(path: str | Path) -> CacheRows:
    """The rows as they were written, mapped into memory: what is not looked at is not read.

    Raises ValueError for a file that is not whole.
    """
    shard, _ = opened(path)
    labels = json.loads(bytes(shard.get_tensor(LABELS).numpy()))
    columns = {name: shard.get_tensor(name) for name in shard.keys() if name != LABELS and "." not in name}
    return CacheRows(columns, labels["captions"], labels["keys"])


def read_about(path: str | Path) -> dict[str, Any]:
    """What a shard was made from; its header alone is read."""
    return opened(path)[1]


def read_moments(path: str | Path) -> dict[str, RunningMoments]:
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


def of_channels(values: Tensor) -> RunningMoments:
    """Of every channel, which is dimension 1."""
    moments = RunningMoments(dim=values.shape[1])
    moments.update(rearrange(values, "b c ... -> b ... c").flatten(0, -2))
    return moments


def as_tensors(moments: Mapping[str, RunningMoments]) -> dict[str, Tensor]:
    parts = {name: (torch.tensor([m.count]), m.mean, m.squares) for name, m in moments.items()}
    return {
        f"{name}.{part}": x for name in parts for part, x in zip(("count", "mean", "squares"), parts[name], strict=True)
    }


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, RunningMoments]:
    """Undoes `as_tensors`."""
    made = {}
    for name in {key.partition(".")[0] for key in tensors}:
        made[name] = RunningMoments(dim=len(tensors[f"{name}.mean"]))
        made[name].count = int(tensors[f"{name}.count"])
        made[name].mean, made[name].squares = tensors[f"{name}.mean"], tensors[f"{name}.squares"]
    return made


@dataclass(frozen=True)
class Fields:
    """Those that a batch is to have; a caption has `positions` states in it."""

    names: tuple[str, ...]
    positions: int

    @property
    def stored(self) -> tuple[str, ...]:
        """The columns that they are made from."""
        extra = {MASK: (WORDS,), RAGGED: (RAGGED, STATES_FROM)}
        return (CAPTION_FROM, *(column for name in self.names for column in extra.get(name, (name,))))

    def of(self, rows: CacheRows, images: Int[Tensor, "b"], captions: Int[Tensor, "b"]) -> dict[str, Tensor]:
        """A batch of images and of the caption that each has, by their places in `rows`; floats are float32."""
        made = {MASK: self.mask, RAGGED: self.states}
        plain = [name for name in self.names if name not in made]
        fields = {name: rows.columns[name].index_select(0, captions if is_text(name) else images) for name in plain}
        fields |= {name: make(rows, captions) for name, make in made.items() if name in self.names}
        return {name: widened(fields[name]) for name in self.names}

    def mask(self, rows: CacheRows, captions: Int[Tensor, "b"]) -> Tensor:
        return before(rows.columns[WORDS][captions], self.positions)

    def states(self, rows: CacheRows, captions: Int[Tensor, "b"]) -> Tensor:
        first = rows.columns[STATES_FROM]
        return padded(rows.columns[RAGGED], first[captions], first[captions + 1] - first[captions], self.positions)


def fields_of(folder: str | Path, manifest: Mapping[str, Any], names: Sequence[str], *, padding: bool) -> Fields:
    """`names` of a finished folder; `padding`: whether the states of padding are read too.

    ValueError where the folder lacks a field, or holds the states of words alone and those of padding are read.
    """
    missing = [name for name in names if name not in manifest["fields"]]
    if missing:
        held = ", ".join(manifest["fields"])
        raise UserError(f"{str(folder)!r} has no {', '.join(missing)}: it holds {held}; precompute what is missing")
    if padding and RAGGED in names and manifest["text_states"] == "words":
        told = "holds the states of words alone, and this stage (data.padding=true) reads padding's too, as decoders do"
        raise UserError(f"{str(folder)!r} {told}: precompute with text_states=all into another folder")
    return Fields(tuple(names), manifest["positions"])


def refuse_other_sizes(
    folder: str | Path, manifest: Mapping[str, Any], sizes: Mapping[str, str], dims: Mapping[str, Any]
) -> None:
    """ValueError where a finished folder was made for other sizes than a stage's `dims`.

    `sizes` names for each field the fact of `dims` that says how wide its vectors are, or how many channels latents
    have. The pixels that latents were made of and the positions of captions are facts of every folder.
    """
    found = {fact: manifest["fields"][name]["shape"][0 if name == "z" else -1] for name, fact in sizes.items()}
    if "z" in sizes:
        found["image_size"] = manifest.get("image_size")
    if RAGGED in sizes:
        found["text_length"] = manifest["positions"]
    known = {fact: size for fact, size in found.items() if None not in (size, dims[fact])}
    told = [f"{fact}={size}, not {dims[fact]}" for fact, size in known.items() if dims[fact] != size]
    if told:
        raise UserError(
            f"{str(folder)!r} was made for dims of {', '.join(told)}: train with these, or precompute with the "
            "encoders and image_size that this stage is for"
        )
