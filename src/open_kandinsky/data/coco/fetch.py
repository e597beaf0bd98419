"""A large file over HTTP: goes on where it stopped, and is there only once it is what it should be.

What we need of COCO's two archives, written so that one may stop and go on at any time.

Only members with the very names of COCO's files are written, by those names: no archive can reach out of the folder.

COCO's validation set of 2014 into a folder: download, check, unpack, count; each only where it is not done.
"""

import hashlib
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.coco import folder as notes
from open_kandinsky.data.coco.folder import FILE, FOLDER, Coco, captions_file, named, pictures

TIMEOUT = 60  # seconds without a byte
CHUNK = 1 << 20
HAD_ALL = 416  # the server's answer to one who asks for what comes after the last byte


@dataclass(frozen=True, kw_only=True)
class RemoteArchive:
    """A published file; `size` in bytes. What is None is not checked."""

    url: str
    size: int | None
    sha256: str | None

    @property
    def name(self) -> str:
        return urlsplit(self.url).path.rpartition("/")[2]


def download(archive: RemoteArchive, path: Path) -> None:
    """Fetch to `path`, by way of `path`.part, which stays where the connection fails and is gone on from.

    ConnectionError where there is no way to the server, and where it stops sending for good. ValueError where what came
    is not what was published; it is removed.
    """
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    receive_all(archive, part)
    wrong = difference(part, archive)
    if wrong:
        part.unlink()
        raise UserError(f"{archive.url}: {wrong}. What came was removed; was the file published anew?")
    files.synced(part)
    part.replace(path)
    files.synced(path.parent)


def receive_all(archive: RemoteArchive, part: Path) -> None:
    """Ask again as long as each answer brings something."""
    with tqdm(total=archive.size, desc=archive.name, unit="B", unit_scale=True, delay=0.5) as bar:
        before, reason = -1, ""
        while (have := length(part)) > before and (archive.size is None or have < archive.size):
            before = have
            try:
                if receive(archive.url, part, bar):
                    return
                reason = "the connection was cut"
            except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
                reason = str(getattr(error, "reason", "") or error or type(error).__name__)
        if have <= before:
            kept = f"; {have:,} bytes are kept in {part}" if have else ""
            raise ConnectionError(f"{archive.url}: {reason}{kept}")


def receive(url: str, part: Path, bar: tqdm) -> bool:
    """Append what the server sends after the bytes that are there; whether that was all of the file."""
    have = length(part)
    try:
        with urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=TIMEOUT) as answer:
            return append(answer, part, have, bar)
    except HTTPError as error:
        if error.code == HAD_ALL and have:
            return True
        raise URLError(f"the server says {error.code}, {error.reason}") from error


def append(answer: HTTPResponse, part: Path, have: int, bar: tqdm) -> bool:
    """A server that knows no ranges sends the file from its start: what was there gives way to it."""
    resumed = answer.status == 206 and (answer.headers["Content-Range"] or "").startswith(f"bytes {have}-")
    if answer.status == 206 and not resumed:
        raise ConnectionError(f"asked for bytes from {have} on, the server sent {answer.headers['Content-Range']}")
    bar.n = have if resumed else 0
    expected = answer.headers["Content-Length"]
    with open(part, "ab" if resumed else "wb") as file:
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
    return expected is None or length(part) == int(expected) + (have if resumed else 0)


def length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def difference(path: Path, archive: RemoteArchive) -> str | None:
    """In what a file is not the published one; None where it is."""
    size = length(path)
    if archive.size is not None and size != archive.size:
        return f"{size:,} bytes, {archive.size:,} were published"
    if archive.sha256 is None:
        return None
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return None if found == archive.sha256 else f"sha256 {found}, {archive.sha256} was published"


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


@dataclass(frozen=True, kw_only=True)
class CocoRelease:
    """The two archives, and how many images and captions they must give."""

    annotations: RemoteArchive
    pictures: RemoteArchive
    images: int
    captions: int


def fetch(folder: Path, published: CocoRelease) -> Coco:
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


def bring(archive: RemoteArchive, unpack: Callable[[Path, Path], None], folder: Path, published: CocoRelease) -> None:
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
    return any(image.file_name not in there for image in notes.read_annotations(file).images)


def by_hand(reason: str, folder: Path, published: CocoRelease) -> str:
    """What to put where, and what of it is there already."""
    wanted = [published.annotations] if captions_file(folder) is None else []
    wanted += [published.pictures] if len(pictures(folder)) < published.images else []
    absent = [archive for archive in wanted if not (folder / archive.name).exists()]
    files = (f"  {archive.url}\n    to {folder / archive.name} ({described(archive)})" for archive in absent)
    return "\n".join(
        [f"not fetched: {reason}", "Fetch on a machine with a network, copy, and run the same command again:", *files]
        + [f"Unpacked, {folder}/annotations/{notes.FILE} and {folder}/{FOLDER}/ do as well."]
    )


def described(archive: RemoteArchive) -> str:
    size = "size unknown" if archive.size is None else f"{archive.size:,} bytes"
    return f"{size}, sha256 {archive.sha256 or 'unknown'}"
