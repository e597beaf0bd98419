"""The file captions_val2014.json: images, captions, and a hash of both.

Where the pictures of val2014 lie: files of a folder, or members of tar shards that hold those very files.

A folder of COCO's validation images of 2014, as downloaded.
"""

import hashlib
import io
import json
import os
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from PIL import Image

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


def read_annotations(file: Path) -> Annotations:
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


FOLDER = "val2014"


class Piece(NamedTuple):
    """Bytes of a file; a `size` of -1 is the rest of it."""

    file: Path
    offset: int
    size: int

    @property
    def length(self) -> int:
        """In bytes, without reading them."""
        return self.file.stat().st_size if self.size < 0 else self.size

    def read(self) -> bytes:
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def pictures(folder: Path) -> dict[str, Piece]:
    """Every picture by its file name, nothing read: of val2014/, and of *.tar there and in `folder` itself.

    A shard's members are called as COCO calls its files (COCO_val2014_000000000042.jpg), in any folder. Where a name
    is there as a file and in a shard, the file is taken. ValueError for a shard that is cut short.
    """
    shards = [shard for place in (folder, folder / FOLDER) for shard in sorted(place.glob("*.tar"))]
    found = {name: piece for shard in shards for name, piece in members(shard)}
    return found | {name: Piece(folder / FOLDER / name, 0, -1) for name in names(folder / FOLDER)}


def names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.name.endswith(".jpg") and entry.is_file()]


def members(shard: Path) -> Iterator[tuple[str, Piece]]:
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.isreg() and member.name.endswith(".jpg"):
                    yield member.name.rpartition("/")[2], Piece(shard, member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{shard}: cut short or no tar ({error}); copy it again") from error


FORMATS = ("JPEG",)  # and nothing that is only called so


class Coco:
    """Images and captions, each sorted by id, and the pictures, read when asked for.

    `converted` gathers, for the pictures that this object has read, what other mode than RGB each was stored in.
    """

    def __init__(self, source: Path, annotations: Annotations, pieces: Mapping[str, Piece]) -> None:
        self.source, self.annotations, self.pieces = source, annotations, pieces
        self.converted: dict[int, str] = {}

    @classmethod
    def open(cls, folder: str | Path) -> "Coco":
        """Read captions_val2014.json, of `folder` or of its annotations/, and find each image that it lists.

        The images are those of val2014/, or lie in tar shards; see `pictures.pictures`. A smaller set of that shape is
        one too. ValueError says all that is missing, and the way to it.
        """
        folder = Path(folder)
        file, pieces = captions_file(folder), pictures(folder)
        if file is None:
            raise UserError(f"{no_captions(folder)}; {held(folder, pieces)}. {remedy(folder)}")
        read = read_annotations(file)
        missing = [image.file_name for image in read.images if image.file_name not in pieces]
        if missing:
            told = f"{len(missing):,} of {len(read.images):,} pictures are missing ({named(missing)})"
            raise UserError(f"{folder}: {told}; {held(folder, pieces)}. {remedy(folder)}")
        return cls(folder, read, pieces)

    @property
    def images(self) -> list[CocoImage]:
        return self.annotations.images

    @property
    def captions(self) -> list[CocoCaption]:
        return self.annotations.captions

    @property
    def is_val2014(self) -> bool:
        """Whether there are as many images and captions as in the whole set: no other set is COCO-30K's."""
        return (len(self.images), len(self.captions)) == (IMAGES, CAPTIONS)

    @cached_property
    def sha256(self) -> str:
        """What set this is: a hash of its ids, file names and captions. Pixels are not part of it."""
        return sha256(self.annotations)

    @cached_property
    def captions_of(self) -> Mapping[int, Sequence[CocoCaption]]:
        """Image id -> its captions, sorted by id; most images have 5, some more."""
        of: defaultdict[int, list[CocoCaption]] = defaultdict(list)
        for caption in self.captions:
            of[caption.image_id].append(caption)
        return dict(of)

    @cached_property
    def by_id(self) -> Mapping[int, CocoImage]:
        return {image.id: image for image in self.images}

    def picture(self, image_id: int) -> Image.Image:
        """In RGB: greyscale and CMYK are converted and noted. An EXIF orientation is not applied.

        pytorch-fid and clean-fid open a file just so. ValueError for an id that is not listed, and for a file that is
        no whole image or not of the size that is listed: it has been resized, and would give another distance.
        """
        if image_id not in self.by_id:
            raise UserError(f"image_id={image_id}: {self.source} lists no such image")
        listed = self.by_id[image_id]
        image = decoded(self.pieces[listed.file_name], listed.file_name)
        if sorted(image.size) != sorted((listed.width, listed.height)):
            told = f"{image.width}x{image.height} pixels, {listed.width}x{listed.height} are listed"
            raise UserError(f"{listed.file_name}: {told}; the images are wanted as downloaded, not resized")
        if image.mode != "RGB":
            self.converted[image_id] = image.mode
        return image.convert("RGB")

    def size_of(self, image_id: int) -> int:
        """The file's bytes: a picture that was replaced by another shows in them."""
        return self.pieces[self.by_id[image_id].file_name].length

    def conversions(self) -> dict[str, int]:
        """Mode -> how many of the pictures that were read had it; RGB is not counted."""
        return dict(Counter(self.converted.values()))


def decoded(piece: Piece, name: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(piece.read()), formats=FORMATS)
        image.load()
    except Exception as error:  # on damaged bytes PIL's decoders raise nearly anything
        raise UserError(f"{name} in {piece.file}: no whole image ({error}); remove it and run `make coco`") from error
    return image


def captions_file(folder: Path) -> Path | None:
    """As the archive holds it, in annotations/, or beside val2014/."""
    places = (folder / "annotations" / FILE, folder / FILE)
    return next((file for file in places if file.is_file()), None)


def no_captions(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder"
    return f"{folder}: {FILE} is missing, here and in {folder / 'annotations'}"


def held(folder: Path, pieces: Mapping[str, Piece]) -> str:
    return f"{folder / FOLDER} and the shards hold {len(pieces):,} pictures" if pieces else f"no picture in {FOLDER}/"


def remedy(folder: Path) -> str:
    return (
        f"`make coco` fetches what is missing, or says which files to put where: open-kandinsky coco to={folder}. "
        f"As downloaded is: {folder}/annotations/{FILE}, {folder}/{FOLDER}/COCO_val2014_000000000042.jpg, ..."
    )
