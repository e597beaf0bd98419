"""What a cache's shard holds, read or about to be written: an image's tensors, and those of its captions."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.caches.states import Keep, packed, starts

# Beside the fields that a batch has, a shard says whose captions and states are whose.
CAPTION_FROM = "caption_from"  # the first caption of each image, and where the last one's end
STATES_FROM = "text_tokens_from"  # the same of the states of each caption
WORDS = "text_words"  # how many of a caption's states are words, start and end
BOUNDS = (CAPTION_FROM, STATES_FROM)
RAGGED = "text_tokens"
MASK = "text_mask"


class Rows(NamedTuple):
    """`columns`: a row an image, or for what is called text_ a row a caption, but RAGGED lies end to end."""

    columns: dict[str, Tensor]
    caption: list[str]  # of all images, one after the other
    key: list[str]

    def check(self, where: str) -> None:
        """ValueError where lengths disagree."""
        expected = lengths(self.columns, len(self.key), len(self.caption))
        wrong = {name: len(c) for name, c in self.columns.items() if len(c) != expected[name]}
        if wrong:
            beside = f"{len(self.key)} keys, {len(self.caption)} captions"
            raise UserError(f"columns of unequal length for {where!r}: {wrong} beside {beside}")


def lengths(columns: Mapping[str, Tensor], images: int, captions: int) -> dict[str, int]:
    """How many rows each column has, for so many images and captions."""
    made = {name: (captions if is_text(name) else images) + (name in BOUNDS) for name in columns}
    return made | ({RAGGED: int(columns[STATES_FROM][-1])} if RAGGED in columns else {})


def is_text(name: str) -> bool:
    """Whether a field has a row a caption."""
    return name.startswith("text_")


def rows_of(
    images: dict[str, Tensor],
    texts: dict[str, Tensor],
    captions: Sequence[Sequence[str]],
    keys: Sequence[str],
    keep: Keep,
) -> Rows:
    """From what encoders say. `texts`: text_emb, text_tokens and text_mask of all captions, image after image."""
    counts = torch.tensor([len(those) for those in captions], dtype=torch.long)
    columns = dict(images) | {CAPTION_FROM: starts(counts)} | stored_texts(texts, keep)
    return Rows(columns, [caption for those in captions for caption in those], list(keys))


def stored_texts(texts: dict[str, Tensor], keep: Keep) -> dict[str, Tensor]:
    """The mask as a count, the states end to end in half precision."""
    stored = {name: texts[name] for name in texts if name not in (RAGGED, MASK)}
    mask = texts[MASK]
    assert torch.equal(mask, mask.long().cumprod(1).bool()), "an encoder pads behind the words"
    kept = keep(texts[RAGGED], mask)
    flat = packed(texts[RAGGED].half(), kept)
    return stored | {RAGGED: flat, STATES_FROM: starts(kept), WORDS: mask.sum(1)}


def joined(parts: Sequence[Rows]) -> Rows:
    """One after the other."""
    columns = {name: torch.cat([part.columns[name] for part in parts]) for name in parts[0].columns}
    for name in BOUNDS:
        if name in columns:
            columns[name] = starts(torch.cat([part.columns[name].diff() for part in parts]))
    captions, keys = ([one for part in parts for one in part[at]] for at in (1, 2))
    return Rows(columns, captions, keys)


def some_rows(rows: Rows, start: int, stop: int) -> Rows:
    """Of the images `start` to `stop` - 1."""
    first, last = (int(rows.columns[CAPTION_FROM][at]) for at in (start, stop))
    ends = {name: (first, last) if is_text(name) else (start, stop) for name in rows.columns}
    if RAGGED in ends:
        ends[RAGGED] = int(rows.columns[STATES_FROM][first]), int(rows.columns[STATES_FROM][last])
    columns = {name: rows.columns[name][begin : end + (name in BOUNDS)] for name, (begin, end) in ends.items()}
    columns |= {name: columns[name] - columns[name][0] for name in BOUNDS if name in columns}
    return Rows(columns, rows.caption[first:last], rows.key[start:stop])


def field_shapes(rows: Rows) -> dict[str, dict[str, Any]]:
    """Of each field that is kept: the shape of one row, and the type."""
    fields = {name: c for name, c in rows.columns.items() if name not in (*BOUNDS, WORDS)}
    return {name: {"shape": list(c.shape[1:]), "dtype": str(c.dtype)[len("torch.") :]} for name, c in fields.items()}


def batch_shapes(fields: dict[str, dict[str, Any]], positions: int) -> dict[str, dict[str, Any]]:
    """The same of an example in a batch, where a caption has `positions` states and a mask of them."""
    if RAGGED not in fields:
        return fields
    states = fields[RAGGED] | {"shape": [positions, *fields[RAGGED]["shape"]]}
    return fields | {RAGGED: states, MASK: {"shape": [positions], "dtype": "bool"}}
