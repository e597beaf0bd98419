"""COCO's validation set of 2014 into a folder: download, check, unpack, count; each only where it is not done."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.coco import annotations as notes
from open_kandinsky.data.coco.download import Archive, difference, download
from open_kandinsky.data.coco.folder import Coco, captions_file
from open_kandinsky.data.coco.pictures import FOLDER, pictures
from open_kandinsky.data.coco.unpack import unpack_captions, unpack_pictures


@dataclass(frozen=True, kw_only=True)
class Published:
    """The two archives, and how many images and captions they must give."""

    annotations: Archive
    pictures: Archive
    images: int
    captions: int


def fetch(folder: Path, published: Published) -> Coco:
    """The set in `folder`, after whatever of this was not done yet. The archives stay; nothing is overwritten.

    ValueError where an archive or the whole is not as published; and where there is no network, with the files to put
    there by hand.
    """
    if captions_file(folder) is None:
        bring(published.annotations, unpack_captions, folder, published)
    if lacks_pictures(folder):
        bring(published.pictures, unpack_pictures, folder, published)
    coco = Coco.open(folder)
    found, wanted = (len(coco.images), len(coco.captions)), (published.images, published.captions)
    if found != wanted:
        told = f"{found[0]:,} images and {found[1]:,} captions, {wanted[0]:,} and {wanted[1]:,} were published"
        raise UserError(f"{captions_file(folder)}: {told}; is it of another set? Choose another folder")
    return coco


def bring(archive: Archive, unpack: Callable[[Path, Path], None], folder: Path, published: Published) -> None:
    """Unpack the archive in `folder`, a person's or an earlier run's, or else download it first."""
    path = folder / archive.name
    if not path.exists():
        try:
            download(archive, path)
        except ConnectionError as error:
            raise UserError(by_hand(str(error), folder, published)) from error
    elif wrong := difference(path, archive):
        raise UserError(f"{path}: {wrong}; nothing is overwritten: remove it and run `make coco`")
    unpack(path, folder)


def lacks_pictures(folder: Path) -> bool:
    """Whether images that are listed are not there."""
    file = captions_file(folder)
    assert file is not None
    there = pictures(folder)
    return any(image.file_name not in there for image in notes.read(file).images)


def by_hand(reason: str, folder: Path, published: Published) -> str:
    """What to put where, and what of it is there already."""
    wanted = [published.annotations] if captions_file(folder) is None else []
    wanted += [published.pictures] if len(pictures(folder)) < published.images else []
    absent = [archive for archive in wanted if not (folder / archive.name).exists()]
    files = (f"  {archive.url}\n    to {folder / archive.name} ({described(archive)})" for archive in absent)
    return "\n".join(
        [f"not fetched: {reason}", "Fetch on a machine with a network, copy, and run the same command again:", *files]
        + [f"Unpacked, {folder}/annotations/{notes.FILE} and {folder}/{FOLDER}/ do as well."]
    )


def described(archive: Archive) -> str:
    size = "size unknown" if archive.size is None else f"{archive.size:,} bytes"
    return f"{size}, sha256 {archive.sha256 or 'unknown'}"
