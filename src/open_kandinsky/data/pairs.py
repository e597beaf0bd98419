"""From the undecoded sample of a shard to a row of a batch of pictures and captions.

`Filters` decide which samples are used, `OneShape` or `AspectBuckets` the shape that a picture is trained in (both by
the size in its header, before anything is decoded), and `Captions` which of a sample's captions. `Pairs` joins them.
"""

import math
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

from open_kandinsky.core.errors import BadSample, FilteredSample, UserError
from open_kandinsky.data.memory import Batch
from open_kandinsky.data.tar.sample import (
    Raw,
    describe_members,
    image_bytes,
    read_image,
    read_info,
    read_text,
    refuse_unusable,
)
from open_kandinsky.data.tar.stats import FILTERED
from open_kandinsky.data.transforms import MAX_PIXELS, check_background, covering, image_size


class Captions:
    """Draws one caption of a sample by weight. `weights`: place -> weight.

    A place is `txt`, the text member, or a field of the json (or side file): a caption, or a list that one is drawn
    from. Where a place is empty, the draw is among the others; a place of weight 0 is used where all others are empty.
    """

    def __init__(self, *, weights: Mapping[str, float]) -> None:
        if not weights or min(weights.values()) < 0:
            raise UserError(f"captions by weights {dict(weights)}: give at least one place, and no weight below 0")
        self.weights = dict(weights)

    def choose(self, raw: Raw, info: Mapping[str, Any], rng: random.Random) -> str:
        """Raises BadSample where there is none."""
        found = {place: captions for place in self.weights if (captions := captions_at(place, raw, info))}
        if not found:
            if raw.members.get("txt") == b"":
                raise BadSample("zero-byte member", ".txt")
            raise BadSample("missing caption", f"nothing in {', '.join(self.weights)}; {describe_members(raw)}")
        weights = [self.weights[place] for place in found]
        weights = weights if any(weights) else [1.0] * len(found)
        [place] = rng.choices(list(found), weights)
        return rng.choice(found[place])


def captions_at(place: str, raw: Raw, info: Mapping[str, Any]) -> list[str]:
    """The captions at a place, without blank ones."""
    value = read_text(raw) if place == "txt" else info.get(place)
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if isinstance(text, str) and text.strip()]


Bounds = Sequence[float | None]  # least and most, both included; None: open


class Filters:
    """Refuses samples by FilteredSample, which does not count as bad.

    min_side, min_pixels: of the upright image, in pixels; max_aspect: its longer side to its shorter one; None: any.
    known: fact -> bounds; a sample without the fact is refused. if_known: the same, a sample without it is taken.
    labels: fact -> the values that are taken, such as LAION's NSFW: [UNLIKELY].
    """

    def __init__(
        self,
        *,
        min_side: int | None,
        min_pixels: int | None,
        max_aspect: float | None,
        known: Mapping[str, Bounds],
        if_known: Mapping[str, Bounds],
        labels: Mapping[str, Sequence[Any]],
    ) -> None:
        for name, bounds in {**known, **if_known}.items():
            if len(bounds) != 2:
                raise UserError(f"bounds of {name}: {list(bounds)}; give [least, most], null where it is open")
        self.min_side, self.min_pixels, self.max_aspect = min_side, min_pixels, max_aspect
        self.known = {name: tuple(bounds) for name, bounds in known.items()}
        self.if_known = {name: tuple(bounds) for name, bounds in if_known.items()}
        self.labels = {name: tuple(wanted) for name, wanted in labels.items()}

    def check(self, size: tuple[int, int], info: Mapping[str, Any]) -> None:
        """`size`: width and height. Raises FilteredSample for a sample that is not wanted."""
        (short, long), found = sorted(size), f"{size[0]}x{size[1]}"
        if self.min_side is not None and short < self.min_side:
            refuse("side", f"{found}, under {self.min_side}")
        if self.min_pixels is not None and short * long < self.min_pixels:
            refuse("pixels", f"{found}, under {self.min_pixels}")
        if self.max_aspect is not None and long > self.max_aspect * short:
            refuse("aspect", f"{found}, over {self.max_aspect}")
        for name, bounds in self.known.items():
            if number(info.get(name)) is None:
                refuse(f"no {name}", f"found {info.get(name)!r}")
            check_bounds(name, info.get(name), bounds)
        for name, bounds in self.if_known.items():
            check_bounds(name, info.get(name), bounds)
        for name, wanted in self.labels.items():
            if info.get(name) not in wanted:
                refuse(name, f"{info.get(name)!r}, not in {list(wanted)}")


def check_bounds(name: str, value: Any, bounds: Bounds) -> None:
    """Raises FilteredSample for a number outside of bounds, which are included; other values pass."""
    found, (least, most) = number(value), bounds
    if found is None:
        return
    if (least is not None and found < least) or (most is not None and found > most):
        refuse(name, f"{found}, not in [{least}, {most}]")


def number(value: Any) -> float | None:
    """A number of a json or a side file; tables that went through pandas hold some as text, and nan for none."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(found) else found


def refuse(reason: str, detail: str) -> None:
    raise FilteredSample(f"{FILTERED}{reason}", detail)


Fields = dict[str, Callable[[Image.Image], Tensor]]


class Shape(NamedTuple):
    """Pixels."""

    height: int
    width: int


class OneShape:
    """Every image in the shape that its fields have by themselves."""

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
        self.shapes = shapes_of_area(size * size, step, max_aspect)

    def bucket(self, size: tuple[int, int]) -> Shape:
        """`size`: width and height of the upright image."""
        width, height = size
        return min(self.shapes, key=lambda shape: (aspect_distance(shape, height / width), shape))

    def fields(self, bucket: Shape | None) -> Fields:
        assert bucket is not None, "as `bucket` gave it"
        return {self.field: partial(covering, height=bucket.height, width=bucket.width)}


def shapes_of_area(area: int, step: int, max_aspect: float) -> list[Shape]:
    """For each shorter side the longest other one that `area` allows, both ways round, from wide to high.

    Raises ValueError where there is none.
    """
    sides = [(side, area // side // step * step) for side in range(step, math.isqrt(area) + 1, step)]
    fitting = [(side, other) for side, other in sides if other <= max_aspect * side]
    found = {shape for side, other in fitting for shape in (Shape(side, other), Shape(other, side))}
    if not found:
        raise UserError(f"no shape of at most {area} pixels, sides multiples of {step}, aspect {max_aspect}: raise one")
    return sorted(found, key=lambda shape: shape.height / shape.width)


def aspect_distance(shape: Shape, aspect: float) -> float:
    """Of two aspects (height to width): the log of the factor that cropping takes from one side."""
    return abs(math.log(shape.height / shape.width) - math.log(aspect))


@runtime_checkable
class Chooser(Protocol):
    """Passes a sample, or raises BadSample, by the upright image's (width, height) and its facts."""

    def check(self, size: tuple[int, int], info: Mapping[str, Any]) -> None: ...


@runtime_checkable
class CaptionChooser(Protocol):
    """The caption of a sample. Raises BadSample where there is none."""

    def choose(self, raw: Raw, info: Mapping[str, Any], rng: random.Random) -> str: ...


@runtime_checkable
class Shapes(Protocol):
    """The shape of an image by its (width, height), and the fields that are made in that shape."""

    def bucket(self, size: tuple[int, int]) -> Shape | None: ...
    def fields(self, bucket: Shape | None) -> Fields: ...


class Pairs:
    """Images with captions. `fields`: name of a pixel field -> its transform; those of `buckets` go before them.
    `background`: the colour behind transparent pictures.

    Both methods raise BadSample for a sample that cannot be used, or is filtered out.
    """

    def __init__(
        self, *, fields: Fields, filters: Chooser, captions: CaptionChooser, buckets: Shapes, background: str = "white"
    ) -> None:
        self.fields, self.filters, self.captions, self.buckets = dict(fields), filters, captions, buckets
        self.background = check_background(background)

    def bucket(self, raw: Raw) -> Hashable:
        """The shape that a sample is trained in, where it passes the filters. Only the image's header is read."""
        refuse_unusable(raw)
        data = image_bytes(raw)
        try:
            size = image_size(data, max_pixels=MAX_PIXELS)
        except ValueError as error:
            raise BadSample("unreadable image", str(error)) from error
        self.filters.check(size, read_info(raw))
        return self.buckets.bucket(size)

    def row(self, raw: Raw, bucket: Any, rng: random.Random) -> Batch:
        """One row of an `ImageBatch`."""
        caption = self.captions.choose(raw, read_info(raw), rng)
        image = read_image(raw, MAX_PIXELS, self.background)
        transforms = self.fields | self.buckets.fields(bucket)
        return {name: make(image) for name, make in transforms.items()} | {"caption": caption, "key": raw.key}
