"""Pictures before they are edited: as many of each thing, of a size that can be, padded to what networks divide."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from open_kandinsky.data.transforms import to_pixels, to_rgb

MIN_SIDE, MAX_SIDE = 8, 4096  # pixels
SIDES = ("left", "right", "top", "bottom")


def listed(given: Any) -> list[Any]:
    """One text or picture as a list of one."""
    return [given] if isinstance(given, str | Image.Image) else list(given)


def matched(**given: Any) -> list[list[Any]]:
    """As many of each thing, one of a thing serving for all; ValueError for numbers that do not go together."""
    lists = {name: listed(of) for name, of in given.items()}
    counts = {name: len(of) for name, of in lists.items()}
    n = max(counts.values())
    if absent := [name for name, count in counts.items() if count == 0]:
        raise ValueError(f"no {' and no '.join(absent)}: nothing to draw; give at least one")
    if set(counts.values()) - {1, n}:
        found = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"{found}: give one for all pictures, or one for each")
    return [of * n if len(of) == 1 else of for of in lists.values()]


def check_sides(width: int, height: int, largest: int | None = MAX_SIDE) -> None:
    """ValueError for a side that is too small to show anything, or too large to be drawn at its own size."""
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"a picture of {width}x{height} pixels: sides are at least {MIN_SIDE} pixels; enlarge it")
    if largest is not None and max(width, height) > largest:
        raise ValueError(f"a picture of {width}x{height} pixels: sides are at most {largest} pixels; make it smaller")


def check_margins(left: int, right: int, top: int, bottom: int) -> None:
    """ValueError unless whole numbers of pixels, none negative and some above 0."""
    margins = dict(zip(SIDES, (left, right, top, bottom), strict=True))
    if stray := [f"{side}={n}" for side, n in margins.items() if not isinstance(n, int) or n < 0]:
        raise ValueError(f"outpaint: {', '.join(stray)}: a margin is a whole number of pixels, 0 or more")
    if not any(margins.values()):
        raise ValueError("outpaint: all margins are 0, nothing is to be painted: give left, right, top or bottom")


def enlarged(image: Image.Image, *, left: int, right: int, top: int, bottom: int) -> tuple[Image.Image, Image.Image]:
    """The image with so many pixels more on each side, its edge repeated, and the mask that is white on them.

    ValueError for margins that are none, and for a picture that would be too large.
    """
    check_margins(left, right, top, bottom)
    check_sides(image.width, image.height)
    check_sides(left + image.width + right, top + image.height + bottom)
    pixels = np.pad(np.asarray(to_rgb(image)), ((top, bottom), (left, right), (0, 0)), mode="edge")
    canvas = Image.fromarray(pixels)
    mask = Image.new("L", canvas.size, 255)
    mask.paste(0, (left, top, left + image.width, top + image.height))
    return canvas, mask


def padded(images: Sequence[Image.Image], *, rows: int, columns: int) -> Float[Tensor, "b 3 {rows} {columns}"]:
    """Pictures of one size in [-1, 1], their last row and column repeated."""
    pixels = torch.stack([to_pixels(to_rgb(image)) for image in images])
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, columns - width, 0, rows - height), mode="replicate")


def by_size(images: Sequence[Image.Image]) -> Iterator[list[int]]:
    """The indices of the images of each size: what one batch can hold."""
    sizes = [image.size for image in images]
    for size in dict.fromkeys(sizes):
        yield [i for i, own in enumerate(sizes) if own == size]
