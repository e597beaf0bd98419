"""From a sample as it lies in a shard to a row of a batch: which are wanted, in which shape, with which caption."""

import random
from collections.abc import Hashable, Mapping
from typing import Any, Protocol, runtime_checkable

from open_kandinsky.core.errors import BadSample
from open_kandinsky.data.memory import Batch
from open_kandinsky.data.pairs.buckets import Fields, Shape
from open_kandinsky.data.tars.sample import Raw, image_bytes, read_image, read_info, refuse_large
from open_kandinsky.data.transforms import MAX_PIXELS, image_size


@runtime_checkable
class Chooser(Protocol):
    """Takes a sample, or raises BadSample, from the upright image's (width, height) and its facts."""

    def check(self, size: tuple[int, int], info: Mapping[str, Any]) -> None: ...


@runtime_checkable
class CaptionChooser(Protocol):
    """The caption of a sample. Raises BadSample where there is none."""

    def choose(self, raw: Raw, info: Mapping[str, Any], draws: random.Random) -> str: ...


@runtime_checkable
class Shapes(Protocol):
    """The shape of an image by its (width, height), and the fields that are made in that shape."""

    def bucket(self, size: tuple[int, int]) -> Shape | None: ...
    def fields(self, bucket: Shape | None) -> Fields: ...


class Pairs:
    """Images with captions. `fields`: name of a pixel field -> its transform; those of `buckets` go before them.

    Both methods raise BadSample for a sample that cannot be used, or is filtered out.
    """

    def __init__(self, *, fields: Fields, filters: Chooser, captions: CaptionChooser, buckets: Shapes) -> None:
        self.fields, self.filters, self.captions, self.buckets = dict(fields), filters, captions, buckets

    def bucket(self, raw: Raw) -> Hashable:
        """The sample's shape, where it is wanted; nothing is decoded."""
        refuse_empty(raw)
        data = image_bytes(raw)
        try:
            size = image_size(data, max_pixels=MAX_PIXELS)
        except ValueError as error:
            raise BadSample("unreadable image", str(error)) from error
        self.filters.check(size, read_info(raw))
        return self.buckets.bucket(size)

    def row(self, raw: Raw, bucket: Any, draws: random.Random) -> Batch:
        """One row of an `ImageBatch`, its caption drawn by `draws`."""
        info = read_info(raw)
        caption = self.captions.choose(raw, info, draws)
        image = read_image(raw, MAX_PIXELS)
        made = {name: make(image) for name, make in (self.fields | self.buckets.fields(bucket)).items()}
        return made | {"caption": caption, "key": raw.key}


def refuse_empty(raw: Raw) -> None:
    """An empty text is left to the captions: img2dataset writes one where it was given none."""
    refuse_large(raw)
    empty = [kind for kind, data in raw.members.items() if not data and kind != "txt"]
    if empty:
        raise BadSample("zero-byte member", f".{empty[0]}")
