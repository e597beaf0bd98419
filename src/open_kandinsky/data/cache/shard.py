"""One shard of a cache: a safetensors file of rows, with the moments of their channels and the recipe that made them.

`write_shard` and `read_shard` are its format. `RunningMoments` are mean and standard deviation in float64. `Fields`
makes the fields of a batch from rows: text states are padded again, and half precision is widened.
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
    """Mean and standard deviation of a stream of vectors, in float64; two of them can be merged.

    Each batch is centred on its own mean (Chan et al. 1979), so that no large sums cancel.
    """

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
        """Adds the vectors of another accumulator."""
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


FORMAT = 2  # of the files; format 1 had one caption an image and no recipe
ABOUT = "cache"  # one entry of metadata: safetensors writes several in another order each time
LABELS = "labels"  # captions and keys as bytes of JSON: in the header they would be read with it
STANDARDISED = ("image_emb", "z")  # fields that a diffusion model may want at mean 0 and deviation 1
MOMENTS = ("count", "mean", "squares")


def write_shard(path: str | Path, rows: CacheRows, about: Mapping[str, Any]) -> None:
    """Writes the rows of one tar, complete or not at all. The same rows and `about` give the same bytes.

    A shard that another process has written meanwhile stays. Raises UserError where `path` exists with another recipe,
    or lengths disagree.
    """
    rows.check(str(path))
    if Path(path).exists():
        if all(name in about and read_about(path).get(name) == about[name] for name in ("recipe", "input")):
            return
        raise UserError(f"{str(path)!r} exists and is not overwritten: delete it to compute it again")
    moments = {}
    for name in [name for name in STANDARDISED if name in rows.columns]:
        accumulated = channel_moments(rows.columns[name])
        values = torch.tensor([accumulated.count]), accumulated.mean, accumulated.squares
        moments |= {f"{name}.{part}": value for part, value in zip(MOMENTS, values, strict=True)}
    tensors = {name: column.detach().cpu().contiguous().clone() for name, column in rows.columns.items()}
    labels = json.dumps({"captions": rows.caption, "keys": rows.key}).encode()
    tensors |= {LABELS: torch.frombuffer(bytearray(labels), dtype=torch.uint8)} | moments
    found = {"images": len(rows.key), "captions": len(rows.caption), "fields": field_shapes(rows)}
    metadata = {ABOUT: json.dumps({"format": FORMAT, **about, **found}, sort_keys=True)}
    files.write_tensors(path, tensors, metadata)


def read_shard(path: str | Path) -> CacheRows:
    """The rows as they were written, mapped into memory: only pages that are used are read.

    Raises UserError for a damaged file.
    """
    shard, _ = opened(path)
    labels = json.loads(bytes(shard.get_tensor(LABELS).numpy()))
    columns = {name: shard.get_tensor(name) for name in shard.keys() if name != LABELS and "." not in name}
    return CacheRows(columns, labels["captions"], labels["keys"])


def read_about(path: str | Path) -> dict[str, Any]:
    """A shard's recipe, tar, statistics, counts and fields, from its header alone."""
    return opened(path)[1]


def read_moments(path: str | Path) -> dict[str, RunningMoments]:
    """The moments of every field that has channels."""
    shard, _ = opened(path)
    moments: dict[str, RunningMoments] = {}
    for field in {key.partition(".")[0] for key in shard.keys() if "." in key}:
        count, mean, squares = (shard.get_tensor(f"{field}.{part}") for part in MOMENTS)
        moments[field] = RunningMoments(dim=len(mean))
        moments[field].count, moments[field].mean, moments[field].squares = int(count), mean, squares
    return moments


def opened(path: str | Path) -> tuple[Any, dict[str, Any]]:
    """A shard and its facts. Raises UserError for a file that is missing, damaged, of another kind or older."""
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
    """Raises UserError for files that another version wrote."""
    if found != FORMAT:
        other = f"{str(path)!r} has format {found or 1} and this version reads {FORMAT}"
        raise UserError(f"{other}: precompute into another folder, or delete it and precompute again")


def channel_moments(values: Tensor) -> RunningMoments:
    """The moments of every channel, which is dimension 1."""
    moments = RunningMoments(dim=values.shape[1])
    moments.update(rearrange(values, "b c ... -> b ... c").flatten(0, -2))
    return moments


@dataclass(frozen=True)
class Fields:
    """The fields of a batch, in which a caption has `positions` states."""

    names: tuple[str, ...]
    positions: int

    @property
    def stored(self) -> tuple[str, ...]:
        """The columns from which they are made."""
        extra = {MASK: (WORDS,), RAGGED: (RAGGED, STATES_FROM)}
        return (CAPTION_FROM, *(column for name in self.names for column in extra.get(name, (name,))))

    def of(self, rows: CacheRows, images: Int[Tensor, "b"], captions: Int[Tensor, "b"]) -> dict[str, Tensor]:
        """A batch of images, each with one caption, by their indices in `rows`; floats are float32."""
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
    """The fields `names` of a finished folder; `padding`: whether the states of padding are read too.

    Raises UserError where the folder lacks a field, or the states of padding that are to be read.
    """
    missing = [name for name in names if name not in manifest["fields"]]
    if missing:
        held = ", ".join(manifest["fields"])
        raise UserError(f"{str(folder)!r} has no {', '.join(missing)}: it holds {held}; precompute what is missing")
    if padding and RAGGED in names and manifest["text_states"] == "words":
        lacks = (
            "holds the states of words alone, and this stage (data.padding=true) reads padding's too, as decoders do"
        )
        raise UserError(f"{str(folder)!r} {lacks}: precompute with text_states=all into another folder")
    return Fields(tuple(names), manifest["positions"])


def refuse_other_sizes(
    folder: str | Path, manifest: Mapping[str, Any], sizes: Mapping[str, str], dims: Mapping[str, Any]
) -> None:
    """Raises UserError where a finished folder was made for other sizes than a stage's `dims`.

    `sizes`: field -> the key of `dims` that has the width of its vectors, or the channels of latents. The pixels that
    latents were made of and the positions of captions are compared too.
    """
    found = {fact: manifest["fields"][name]["shape"][0 if name == "z" else -1] for name, fact in sizes.items()}
    if "z" in sizes:
        found["image_size"] = manifest.get("image_size")
    if RAGGED in sizes:
        found["text_length"] = manifest["positions"]
    known = {fact: size for fact, size in found.items() if None not in (size, dims[fact])}
    wrong = [f"{fact}={size}, not {dims[fact]}" for fact, size in known.items() if dims[fact] != size]
    if wrong:
        raise UserError(
            f"{str(folder)!r} was made for dims of {', '.join(wrong)}: train with these, or precompute with the "
            "encoders and image_size that this stage is for"
        )
