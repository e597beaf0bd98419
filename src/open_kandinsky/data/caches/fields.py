"""From a cache's rows to the fields of a batch: text states padded again, half precision widened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.caches.rows import CAPTION_FROM, MASK, RAGGED, STATES_FROM, WORDS, Rows, is_text
from open_kandinsky.data.caches.states import before, padded
from open_kandinsky.data.memory import widened


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

    def of(self, rows: Rows, images: Int[Tensor, "b"], captions: Int[Tensor, "b"]) -> dict[str, Tensor]:
        """A batch of images and of the caption that each has, by their places in `rows`; floats are float32."""
        made = {MASK: self.mask, RAGGED: self.states}
        plain = [name for name in self.names if name not in made]
        fields = {name: rows.columns[name].index_select(0, captions if is_text(name) else images) for name in plain}
        fields |= {name: make(rows, captions) for name, make in made.items() if name in self.names}
        return {name: widened(fields[name]) for name in self.names}

    def mask(self, rows: Rows, captions: Int[Tensor, "b"]) -> Tensor:
        return before(rows.columns[WORDS][captions], self.positions)

    def states(self, rows: Rows, captions: Int[Tensor, "b"]) -> Tensor:
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
