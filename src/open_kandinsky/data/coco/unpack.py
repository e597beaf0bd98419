"""What we need of COCO's two archives, written so that one may stop and go on at any time.

Only members with the very names of COCO's files are written, by those names: no archive can reach out of the folder.
"""

import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.coco.annotations import FILE, named
from open_kandinsky.data.coco.pictures import FOLDER

CAPTIONS = re.compile(rf"(?:annotations/)?({re.escape(FILE)})")
PICTURES = re.compile(rf"{FOLDER}/(COCO_val2014_\d{{12}}\.jpg)")
PART = f".{FOLDER}.part"

Members = dict[str, zipfile.ZipInfo]


def unpack_captions(archive: Path, folder: Path) -> None:
    """annotations/captions_val2014.json, whole or not at all. ValueError for an archive that is damaged or lacks it."""
    with opened(archive) as zipped:
        member = members(zipped, CAPTIONS, archive)[FILE]
        with files.replacing(folder / "annotations" / FILE) as part:
            extract(zipped, member, part)


def unpack_pictures(archive: Path, folder: Path) -> None:
    """Those that val2014/ lacks, to a folder beside it; moved once all are on the disk.

    What that folder holds from a run that was stopped is kept if its checksum is right. ValueError for an archive that
    is damaged or holds no picture, and where val2014/ has other pictures by these names: none is overwritten.
    """
    into, part = folder / FOLDER, folder / PART
    with opened(archive) as zipped:
        found = members(zipped, PICTURES, archive)
        refuse_others(into, found)
        absent = [name for name in found if not (into / name).exists()]
        part.mkdir(parents=True, exist_ok=True)
        for name in tqdm(absent, desc="pictures", unit="picture"):
            if not whole(part / name, found[name]):
                extract(zipped, found[name], part / name)
    os.sync()  # once: to wait for each of 40,504 files takes longer than to fetch them
    into.mkdir(exist_ok=True)
    for name in absent:
        (part / name).replace(into / name)
    shutil.rmtree(part)


@contextmanager
def opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(archive) as zipped:
            yield zipped
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{archive}: damaged, or no zip ({error}); remove it and run `make coco`") from error


def members(zipped: zipfile.ZipFile, pattern: re.Pattern[str], archive: Path) -> Members:
    """File name -> member, of those whose path is what it should be."""
    matches = ((pattern.fullmatch(info.filename), info) for info in zipped.infolist())
    found = {match[1]: info for match, info in matches if match}
    if not found:
        held = named([info.filename for info in zipped.infolist()]) or "nothing"
        raise UserError(f"{archive}: holds no {pattern.pattern}, but {held}; is it COCO's of 2014?")
    return found


def extract(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """zipfile compares the checksum at the end of the member."""
    with zipped.open(member) as source, open(path, "wb") as file:
        shutil.copyfileobj(source, file)


def whole(path: Path, member: zipfile.ZipInfo) -> bool:
    """Whether a run that was stopped has written all of it; the checksum also knows a power cut's empty blocks."""
    return path.exists() and path.stat().st_size == member.file_size and zlib.crc32(path.read_bytes()) == member.CRC


def refuse_others(into: Path, found: Members) -> None:
    sizes = {name: (into / name).stat().st_size for name in found if (into / name).exists()}
    other = [name for name, size in sizes.items() if size != found[name].file_size]
    if other:
        told = f"{len(other):,} pictures are not as long as in the archive ({named(other)})"
        raise UserError(f"{into}: {told}; nothing is overwritten: remove them and run `make coco`")
