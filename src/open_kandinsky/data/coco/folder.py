"""A folder of COCO's validation images of 2014: captions_val2014.json, and the pictures in files or in tar shards.

A smaller set of the same form can be read, too.
"""

import hashlib
import io
import json
import os
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from open_kandinsky.core.errors import UserError

FILE, FOLDER = "captions_val2014.json", "val2014"
IMAGES, CAPTIONS = 40_504, 202_654  # in the file of 2014; the paper on the captions says 202,520
FORMATS = ("JPEG",)  # a file in another format is refused, whatever its name


class CocoImage(NamedTuple):
    """Width and height in pixels, as stored in the file."""

    id: int
    file_name: str
    width: int
    height: int


class CocoCaption(NamedTuple):
    """Text as in the file, without white space at its ends."""

    id: int
    image_id: int
    text: str


class Annotations(NamedTuple):
    """Both sorted by id."""

    images: list[CocoImage]
    captions: list[CocoCaption]


def read_annotations(file: Path) -> Annotations:
    """ValueError for a file that is cut short or no captions file, for duplicate ids, and for captions of no image."""
    try:
        tree = json.loads(file.read_bytes())
        images = sorted(CocoImage(*(one[key] for key in CocoImage._fields)) for one in tree["images"])
        captions = sorted(CocoCaption(a["id"], a["image_id"], a["caption"].strip()) for a in tree["annotations"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{file}: not COCO's captions, or cut short ({why}); remove it and run `make coco`") from error
    image_ids, caption_ids = Counter(image.id for image in images), Counter(caption.id for caption in captions)
    problems = {
        "image ids stand there twice": [id for id, count in image_ids.items() if count > 1],
        "caption ids stand there twice": [id for id, count in caption_ids.items() if count > 1],
        "captions are of images that it does not list": [c.id for c in captions if c.image_id not in image_ids],
    }
    for problem, ids in problems.items():
        if ids:
            raise UserError(f"{file}: {len(ids):,} {problem} ({first_few(ids)}); remove it and run `make coco`")
    return Annotations(images, captions)


def first_few(names: Sequence[object], shown: int = 3) -> str:
    """The first names with commas between, and dots where there are more."""
    return ", ".join(map(str, names[:shown])) + (", ..." if len(names) > shown else "")


class Piece(NamedTuple):
    """`size` bytes of a file, where a picture lies; a size of -1 means the rest of the file."""

    file: Path
    offset: int
    size: int

    @property
    def length(self) -> int:
        """Bytes, without reading them."""
        return self.file.stat().st_size if self.size < 0 else self.size

    def read(self) -> bytes:
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def pictures(folder: Path) -> dict[str, Piece]:
    """File name -> where the picture lies: in val2014/, or in *.tar there and in `folder` itself. Reads no picture.

    A shard's members are named as COCO's files (COCO_val2014_000000000042.jpg), in any folder. A file is preferred to a
    shard's member. ValueError for a shard that is cut short.
    """
    shards = [shard for place in (folder, folder / FOLDER) for shard in sorted(place.glob("*.tar"))]
    pieces = {name: piece for shard in shards for name, piece in members(shard)}
    if (folder / FOLDER).is_dir():
        with os.scandir(folder / FOLDER) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(".jpg") and entry.is_file()]
        pieces |= {name: Piece(folder / FOLDER / name, 0, -1) for name in names}
    return pieces


def members(shard: Path) -> Iterator[tuple[str, Piece]]:
    """(file name, where it lies) of each JPEG in a tar."""
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.isreg() and member.name.endswith(".jpg"):
                    yield member.name.rpartition("/")[2], Piece(shard, member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{shard}: cut short or no tar ({error}); copy it again") from error


class Coco:
    """Images and captions, each sorted by id; pictures are read one by one.

    `converted` maps the id of each picture that was read and is not stored as RGB to its mode.
    """

    def __init__(self, source: Path, annotations: Annotations, pieces: Mapping[str, Piece]) -> None:
        self.source, self.annotations, self.pieces = source, annotations, pieces
        self.converted: dict[int, str] = {}

    @classmethod
    def open(cls, folder: str | Path) -> "Coco":
        """Read captions_val2014.json, in `folder` or its annotations/, and find each image that it lists.

        ValueError says everything that is missing, and how to get it.
        """
        folder = Path(folder)
        file, pieces = captions_file(folder), pictures(folder)
        if file is None:
            missing = f"{FILE} is missing, here and in {folder / 'annotations'}"
            problem = missing if folder.is_dir() else "no such folder"
            raise UserError(f"{folder}: {problem}; {there_and_remedy(folder, pieces)}")
        annotations = read_annotations(file)
        if missing := [image.file_name for image in annotations.images if image.file_name not in pieces]:
            problem = f"{len(missing):,} of {len(annotations.images):,} pictures are missing ({first_few(missing)})"
            raise UserError(f"{folder}: {problem}; {there_and_remedy(folder, pieces)}")
        return cls(folder, annotations, pieces)

    @property
    def images(self) -> list[CocoImage]:
        return self.annotations.images

    @property
    def captions(self) -> list[CocoCaption]:
        return self.annotations.captions

    @property
    def is_val2014(self) -> bool:
        """Whether there are as many images and captions as in the whole set, from which COCO-30K is drawn."""
        return (len(self.images), len(self.captions)) == (IMAGES, CAPTIONS)

    @cached_property
    def sha256(self) -> str:
        """A hash of the set without its pixels.

        Over the lines `image id, file name, caption id, text`, tabs between, sorted by the ids; UTF-8. An image without
        a caption is a line that ends after its name.
        """
        digest = hashlib.sha256()
        for image in self.images:
            captions = [f"\t{caption.id}\t{caption.text}" for caption in self.captions_of.get(image.id, [])]
            for caption in captions or [""]:
                digest.update(f"{image.id}\t{image.file_name}{caption}\n".encode())
        return digest.hexdigest()

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
        """A picture in RGB: greyscale and CMYK are converted and noted, and an EXIF orientation is not applied, as
        pytorch-fid and clean-fid do.

        ValueError for an id that is not listed, and for a file that is no whole image or not of the listed size: it has
        been resized, and would give another distance.
        """
        if image_id not in self.by_id:
            raise UserError(f"image_id={image_id}: {self.source} lists no such image")
        _, name, width, height = self.by_id[image_id]
        piece = self.pieces[name]
        try:
            image = Image.open(io.BytesIO(piece.read()), formats=FORMATS)
            image.load()
        except Exception as error:  # on damaged bytes PIL's decoders raise nearly anything
            problem = f"{name} in {piece.file}: no whole image ({error})"
            raise UserError(f"{problem}; remove it and run `make coco`") from error
        if sorted(image.size) != sorted((width, height)):
            sizes = f"{image.width}x{image.height} pixels, {width}x{height} are listed"
            raise UserError(f"{name}: {sizes}; the images are wanted as downloaded, not resized")
        if image.mode != "RGB":
            self.converted[image_id] = image.mode
        return image.convert("RGB")

    def size_of(self, image_id: int) -> int:
        """The file's size in bytes; a picture that was replaced usually has another."""
        return self.pieces[self.by_id[image_id].file_name].length


def captions_file(folder: Path) -> Path | None:
    """captions_val2014.json in annotations/, as the archive has it, or beside val2014/; None where there is none."""
    places = (folder / "annotations" / FILE, folder / FILE)
    return next((file for file in places if file.is_file()), None)


def there_and_remedy(folder: Path, pieces: Mapping[str, Piece]) -> str:
    """The end of a message on a set that is not whole: which pictures are there, and how to get the rest."""
    there = f"{folder / FOLDER} and the shards hold {len(pieces):,} pictures" if pieces else f"no picture in {FOLDER}/"
    example = f"{folder}/annotations/{FILE}, {folder}/{FOLDER}/COCO_val2014_000000000042.jpg, ..."
    fetch = "`make coco` fetches what is missing, or says which files to put where"
    return f"{there}. {fetch}: open-kandinsky coco to={folder}. As downloaded is: {example}"
