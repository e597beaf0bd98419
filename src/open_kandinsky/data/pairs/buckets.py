"""The shape that an image is trained in: one for all, or the nearest of several of about the same area."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.transforms import covering

Fields = dict[str, Callable[[Image.Image], Tensor]]


class Shape(NamedTuple):
    """Pixels."""

    height: int
    width: int


class OneShape:
    """Every image in the shapes of the fields themselves."""

    def bucket(self, size: tuple[int, int]) -> Shape | None:
        return None

    def fields(self, bucket: Shape | None) -> Fields:
        return {}


class AspectBuckets:
    """Shapes whose sides are multiples of `step`, with at most the area of a square of `size` and an aspect of at most
    `max_aspect`, all in pixels.

    The pixel field `field` is made in the shape that is nearest to the image's, cropped in the middle. As in SDXL
    (arXiv:2307.01952, appendix I), but that no shape has a larger area than the square.
    """

    def __init__(self, *, size: int, step: int, max_aspect: float, field: str) -> None:
        self.field = field
        self.shapes = shapes(size * size, step, max_aspect)

    def bucket(self, size: tuple[int, int]) -> Shape:
        """`size`: width and height of the upright image."""
        width, height = size
        return min(self.shapes, key=lambda shape: (apart(shape, height / width), shape))

    def fields(self, bucket: Shape | None) -> Fields:
        assert bucket is not None, "as `bucket` gave it"
        return {self.field: partial(covering, height=bucket.height, width=bucket.width)}


def shapes(area: int, step: int, max_aspect: float) -> list[Shape]:
    """For each shorter side the longest other one that `area` allows, both ways round, from wide to high.

    Raises ValueError where there is none.
    """
    found: set[Shape] = set()
    for side in range(step, math.isqrt(area) + 1, step):
        other = area // side // step * step
        if other <= max_aspect * side:
            found |= {Shape(side, other), Shape(other, side)}
    if not found:
        raise UserError(f"no shape of at most {area} pixels, sides multiples of {step}, aspect {max_aspect}: raise one")
    return sorted(found, key=lambda shape: shape.height / shape.width)


def apart(shape: Shape, aspect: float) -> float:
    """How far two aspects (height to width) are: log of the factor that cropping takes from one side."""
    return abs(math.log(shape.height / shape.width) - math.log(aspect))
