"""The file captions_val2014.json: images, captions, and a hash of both."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from open_kandinsky.core.errors import UserError

FILE = "captions_val2014.json"
IMAGES, CAPTIONS = 40_504, 202_654  # what is in the file; the paper on the captions says 202,520


class CocoImage(NamedTuple):
    """Width and height in pixels, as stored in the file."""

    id: int
    file_name: str
    width: int
    height: int


class CocoCaption(NamedTuple):
    """Text as in the file, but for white space and newlines at its ends."""

    id: int
    image_id: int
    text: str


class Annotations(NamedTuple):
    """Both sorted by id."""

    images: list[CocoImage]
    captions: list[CocoCaption]


def read(file: Path) -> Annotations:
    """ValueError for a file that is cut short or no captions file, and for ids that are twice there or lead nowhere."""
    try:
        tree = json.loads(file.read_bytes())
        images = sorted(CocoImage(*(one[key] for key in CocoImage._fields)) for one in tree["images"])
        captions = sorted(CocoCaption(a["id"], a["image_id"], a["caption"].strip()) for a in tree["annotations"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        told = f"{type(error).__name__}: {error}"
        raise UserError(f"{file}: not COCO's captions, or cut short ({told}); remove it and run `make coco`") from error
    refuse(file, "image ids stand there twice", twice(image.id for image in images))
    refuse(file, "caption ids stand there twice", twice(caption.id for caption in captions))
    refuse(file, "captions are of images that it does not list", strays(images, captions))
    return Annotations(images, captions)


def twice(ids: Iterable[int]) -> list[int]:
    return [id for id, count in Counter(ids).items() if count > 1]


def strays(images: Sequence[CocoImage], captions: Sequence[CocoCaption]) -> list[int]:
    """Captions, by id, of no image."""
    known = {image.id for image in images}
    return [caption.id for caption in captions if caption.image_id not in known]


def refuse(file: Path, what: str, wrong: Sequence[int]) -> None:
    if wrong:
        raise UserError(f"{file}: {len(wrong):,} {what} ({named(wrong)}); remove it and run `make coco`")


def named(names: Sequence[object], shown: int = 3) -> str:
    """The first few, and dots where there are more."""
    return ", ".join(map(str, names[:shown])) + (", ..." if len(names) > shown else "")


def sha256(annotations: Annotations) -> str:
    """Over the lines `image id, file name, caption id, text`, tabs between, sorted by the ids; UTF-8.

    An image without a caption is a line that ends after its name. The order of the file does not matter.
    """
    return hashlib.sha256("".join(lines(annotations)).encode()).hexdigest()


def lines(annotations: Annotations) -> Iterator[str]:
    of: dict[int, list[CocoCaption]] = {}
    for caption in annotations.captions:
        of.setdefault(caption.image_id, []).append(caption)
    for image in annotations.images:
        if image.id not in of:
            yield f"{image.id}\t{image.file_name}\n"
        for caption in of.get(image.id, []):
            yield f"{image.id}\t{image.file_name}\t{caption.id}\t{caption.text}\n"
