"""A folder of COCO's validation images of 2014, as downloaded."""

import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from PIL import Image

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.coco import annotations as notes
from open_kandinsky.data.coco.annotations import Annotations, CocoCaption, CocoImage
from open_kandinsky.data.coco.pictures import FOLDER, Piece, pictures

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
        read = notes.read(file)
        missing = [image.file_name for image in read.images if image.file_name not in pieces]
        if missing:
            told = f"{len(missing):,} of {len(read.images):,} pictures are missing ({notes.named(missing)})"
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
        return (len(self.images), len(self.captions)) == (notes.IMAGES, notes.CAPTIONS)

    @cached_property
    def sha256(self) -> str:
        """What set this is: a hash of its ids, file names and captions. Pixels are not part of it."""
        return notes.sha256(self.annotations)

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
    places = (folder / "annotations" / notes.FILE, folder / notes.FILE)
    return next((file for file in places if file.is_file()), None)


def no_captions(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder"
    return f"{folder}: {notes.FILE} is missing, here and in {folder / 'annotations'}"


def held(folder: Path, pieces: Mapping[str, Piece]) -> str:
    return f"{folder / FOLDER} and the shards hold {len(pieces):,} pictures" if pieces else f"no picture in {FOLDER}/"


def remedy(folder: Path) -> str:
    return (
        f"`make coco` fetches what is missing, or says which files to put where: open-kandinsky coco to={folder}. "
        f"As downloaded is: {folder}/annotations/{notes.FILE}, {folder}/{FOLDER}/COCO_val2014_000000000042.jpg, ..."
    )
