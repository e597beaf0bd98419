"""The rows of a cache: the tensors of images and of their captions, with text states stored at their true length.

A caption of twelve tokens has 77 text states. A prior masks the 65 of padding, so it needs the 12 of words. A decoder
reads all 77, but where the encoder masks padding (XLM-R, whose padding has one position too) those 65 are equal, and
one of them is stored. CLIP's differ, and all are stored. The states of all captions lie end to end in one tensor.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from open_kandinsky.core.errors import UserError

SAME = 1e-5  # of the largest state: a fiftieth of what half precision rounds away

Keep = Callable[[Float[Tensor, "b n w"], Bool[Tensor, "b n"]], Int[Tensor, "b"]]


def of_words(states: Float[Tensor, "b n w"], mask: Bool[Tensor, "b n"]) -> Int[Tensor, "b"]:
    """How many states of each caption are stored: those of words, start and end."""
    return mask.sum(1)


def of_all(states: Float[Tensor, "b n w"], mask: Bool[Tensor, "b n"]) -> Int[Tensor, "b"]:
    """How many states of each caption are stored: all, with a tail of equal ones as one."""
    gap = (states - states[:, -1:]).abs().amax(2)
    same = gap <= SAME * states.abs().amax((1, 2))[:, None]
    tail = same.flip(1).long().cumprod(1).sum(1)
    return states.shape[1] - tail + 1


KEEP: dict[str, Keep] = {"words": of_words, "all": of_all}


def kept(name: str) -> Keep:
    """The function of that name. Raises UserError for an unknown name."""
    if name not in KEEP:
        raise UserError(f"text_states={name}: words (enough for a prior) or all (what a decoder reads)")
    return KEEP[name]


def packed(states: Shaped[Tensor, "b n w"], rows: Int[Tensor, "b"]) -> Shaped[Tensor, "total w"]:
    """The first `rows` states of each caption, end to end."""
    return states[before(rows, states.shape[1])]


def padded(
    flat: Shaped[Tensor, "total w"], first: Int[Tensor, "b"], rows: Int[Tensor, "b"], positions: int
) -> Shaped[Tensor, "b n w"]:
    """The inverse of `packed`, of captions that begin at row `first`: each one's last row fills all later positions."""
    at = torch.arange(positions).expand(len(rows), -1)
    return flat[first[:, None] + torch.minimum(at, rows[:, None] - 1)]


def before(count: Int[Tensor, "b"], positions: int) -> Bool[Tensor, "b n"]:
    """True on the first `count` positions."""
    return torch.arange(positions, device=count.device) < count[:, None]


def starts(counts: Int[Tensor, "b"]) -> Int[Tensor, "b+1"]:
    """Where each of some runs begins when they lie end to end, and where the last one ends."""
    return torch.cat([counts.new_zeros(1), counts]).cumsum(0)


# Columns of a shard that no batch has: which captions are of which image, and which states of which caption.
CAPTION_FROM = "caption_from"  # the first caption of each image, and where the last one's end
STATES_FROM = "text_tokens_from"  # the same of the states of each caption
WORDS = "text_words"  # how many of a caption's states are words, start and end
BOUNDS = (CAPTION_FROM, STATES_FROM)
RAGGED = "text_tokens"
MASK = "text_mask"


class CacheRows(NamedTuple):
    """`columns`: one row an image, in those called text_ one row a caption; RAGGED has all states end to end."""

    columns: dict[str, Tensor]
    caption: list[str]  # of all images, one after the other
    key: list[str]

    def check(self, where: str) -> None:
        """Raises UserError where lengths disagree."""
        expected = {n: len(self.caption if is_text(n) else self.key) + (n in BOUNDS) for n in self.columns}
        if RAGGED in self.columns:
            expected[RAGGED] = int(self.columns[STATES_FROM][-1])
        wrong = {name: len(c) for name, c in self.columns.items() if len(c) != expected[name]}
        if wrong:
            beside = f"{len(self.key)} keys, {len(self.caption)} captions"
            raise UserError(f"columns of unequal length for {where!r}: {wrong} beside {beside}")


def is_text(name: str) -> bool:
    """Whether a field has one row for each caption, not for each image."""
    return name.startswith("text_")


def rows_of(
    images: dict[str, Tensor],
    texts: dict[str, Tensor],
    captions: Sequence[Sequence[str]],
    keys: Sequence[str],
    keep: Keep,
) -> CacheRows:
    """From the encoders' outputs. `texts`: text_emb, text_tokens and text_mask of all captions, image after image.

    The mask is stored as a count, the states end to end in half precision.
    """
    counts, mask = torch.tensor([len(some) for some in captions], dtype=torch.long), texts[MASK]
    assert torch.equal(mask, mask.long().cumprod(1).bool()), "an encoder pads behind the words"
    kept = keep(texts[RAGGED], mask)
    columns = (
        dict(images) | {CAPTION_FROM: starts(counts)} | {n: t for n, t in texts.items() if n not in (RAGGED, MASK)}
    )
    columns |= {RAGGED: packed(texts[RAGGED].half(), kept), STATES_FROM: starts(kept), WORDS: mask.sum(1)}
    columns[CAPTION_FROM] = starts(counts)
    return CacheRows(columns, [caption for some in captions for caption in some], list(keys))


def concat_rows(parts: Sequence[CacheRows]) -> CacheRows:
    """The rows of several, one after the other."""
    columns = {name: torch.cat([part.columns[name] for part in parts]) for name in parts[0].columns}
    for name in BOUNDS:
        if name in columns:
            columns[name] = starts(torch.cat([part.columns[name].diff() for part in parts]))
    captions, keys = ([one for part in parts for one in part[at]] for at in (1, 2))
    return CacheRows(columns, captions, keys)


def some_rows(rows: CacheRows, start: int, stop: int) -> CacheRows:
    """The rows of the images `start` to `stop` - 1."""
    first, last = (int(rows.columns[CAPTION_FROM][at]) for at in (start, stop))
    ends = {name: (first, last) if is_text(name) else (start, stop) for name in rows.columns}
    if RAGGED in ends:
        ends[RAGGED] = int(rows.columns[STATES_FROM][first]), int(rows.columns[STATES_FROM][last])
    columns = {name: rows.columns[name][begin : end + (name in BOUNDS)] for name, (begin, end) in ends.items()}
    columns |= {name: columns[name] - columns[name][0] for name in BOUNDS if name in columns}
    return CacheRows(columns, rows.caption[first:last], rows.key[start:stop])


def field_shapes(rows: CacheRows) -> dict[str, dict[str, Any]]:
    """The shape of one row, and the type, of each field that a batch can have."""
    fields = {name: c for name, c in rows.columns.items() if name not in (*BOUNDS, WORDS)}
    return {name: {"shape": list(c.shape[1:]), "dtype": str(c.dtype)[len("torch.") :]} for name, c in fields.items()}


def batch_shapes(fields: dict[str, dict[str, Any]], positions: int) -> dict[str, dict[str, Any]]:
    """Shapes and types of `field_shapes` in a batch, where a caption has `positions` states and a mask of them."""
    if RAGGED not in fields:
        return fields
    states = fields[RAGGED] | {"shape": [positions, *fields[RAGGED]["shape"]]}
    return fields | {RAGGED: states, MASK: {"shape": [positions], "dtype": "bool"}}
