"""Text states to their true length: each caption's rows laid end to end, without what can be said in fewer.

A caption of twelve tokens has 77 states. A prior masks the 65 of padding, so the words alone serve it. A decoder reads
all 77, but where the encoder masks padding (XLM-R, whose padding has one position too) those 65 are one and the same,
and one row of them is enough. CLIP's differ: there all are kept.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from open_kandinsky.core.errors import UserError

SAME = 1e-5  # of the largest state: a fiftieth of what half precision rounds away

Keep = Callable[[Float[Tensor, "b n w"], Bool[Tensor, "b n"]], Int[Tensor, "b"]]


def of_words(states: Float[Tensor, "b n w"], mask: Bool[Tensor, "b n"]) -> Int[Tensor, "b"]:
    """How many rows of each caption are kept: those of words, start and end."""
    return mask.sum(1)


def of_all(states: Float[Tensor, "b n w"], mask: Bool[Tensor, "b n"]) -> Int[Tensor, "b"]:
    """How many rows of each caption are kept: all, a tail of equal ones as one row."""
    gap = (states - states[:, -1:]).abs().amax(2)
    same = gap <= SAME * states.abs().amax((1, 2))[:, None]
    tail = same.flip(1).long().cumprod(1).sum(1)
    return states.shape[1] - tail + 1


KEEP: dict[str, Keep] = {"words": of_words, "all": of_all}


def kept(name: str) -> Keep:
    """ValueError for a name that is none."""
    if name not in KEEP:
        raise UserError(f"text_states={name}: words (enough for a prior) or all (what a decoder reads)")
    return KEEP[name]


def packed(states: Shaped[Tensor, "b n w"], rows: Int[Tensor, "b"]) -> Shaped[Tensor, "total w"]:
    """The first `rows` of each caption, end to end."""
    return states[before(rows, states.shape[1])]


def padded(
    flat: Shaped[Tensor, "total w"], first: Int[Tensor, "b"], rows: Int[Tensor, "b"], positions: int
) -> Shaped[Tensor, "b n w"]:
    """Undoes `packed`: captions that begin at row `first`; the last of its rows stands for all that follow."""
    at = torch.arange(positions).expand(len(rows), -1)
    return flat[first[:, None] + torch.minimum(at, rows[:, None] - 1)]


def before(count: Int[Tensor, "b"], positions: int) -> Bool[Tensor, "b n"]:
    """True on the first `count` positions."""
    return torch.arange(positions, device=count.device) < count[:, None]


def starts(counts: Int[Tensor, "b"]) -> Int[Tensor, "b+1"]:
    """Where each begins when they lie end to end, and where the last one ends."""
    return torch.cat([counts.new_zeros(1), counts]).cumsum(0)
