"""COCO's validation set of 2014 into a folder: download, check, unpack, count; each only where it is not yet done.

A download that stopped is resumed, and appears under its name once it has the published size and hash. Of the archives
only members with the very names of COCO's files are unpacked, under those names: none can be written out of the folder.
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
from open_kandinsky.data.coco.folder import (
    FILE,
    FOLDER,
    Coco,
    captions_file,
    first_few,
    pictures,
    read_annotations,
)

TIMEOUT = 60  # seconds without a byte
CHUNK = 1 << 20
NOTHING_LEFT = 416  # the HTTP status where the requested range begins after the last byte
CAPTIONS = re.compile(rf"(?:annotations/)?({re.escape(FILE)})")
PICTURES = re.compile(rf"{FOLDER}/(COCO_val2014_\d{{12}}\.jpg)")
PART = f".{FOLDER}.part"  # the folder that pictures are unpacked to

Members = dict[str, zipfile.ZipInfo]


@dataclass(frozen=True, kw_only=True)
class RemoteArchive:
    """A published file; `size` in bytes. Size and hash are not checked where they are None."""

    url: str
    size: int | None
    sha256: str | None

    @property
    def name(self) -> str:
        return urlsplit(self.url).path.rpartition("/")[2]


def download(archive: RemoteArchive, path: Path) -> None:
    """Fetch to `path`, through `path`.part, which stays where the connection fails, to be resumed.

    ConnectionError where the server cannot be reached, and where it stops sending for good. ValueError where the file
    is not the published one; it is removed.
    """
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    receive_all(archive, part)
    if wrong := difference(part, archive):
        part.unlink()
        raise UserError(f"{archive.url}: {wrong}. What came was removed; was the file published anew?")
    files.synced(part)
    part.replace(path)
    files.synced(path.parent)


def receive_all(archive: RemoteArchive, part: Path) -> None:
    """Fetch what is missing of `part`; ask again as long as each answer brings more bytes."""
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
    """Append what the server sends after the bytes that are there. Returns whether the file is complete."""
    have = length(part)
    try:
        with urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=TIMEOUT) as answer:
            return append(answer, part, have, bar)
    except HTTPError as error:
        if error.code == NOTHING_LEFT and have:
            return True
        raise URLError(f"the server says {error.code}, {error.reason}") from error


def append(answer: HTTPResponse, part: Path, have: int, bar: tqdm) -> bool:
    """Write an answer to `part`: after its `have` bytes, or in place of them where the server sends the whole file.
    Returns whether the file is complete."""
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
    """How a file differs from the published one, in words; None where it does not."""
    size = length(path)
    if archive.size is not None and size != archive.size:
        return f"{size:,} bytes, {archive.size:,} were published"
    if archive.sha256 is None:
        return None
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return None if sha256 == archive.sha256 else f"sha256 {sha256}, {archive.sha256} was published"


def unpack_captions(archive: Path, folder: Path) -> None:
    """Unpack annotations/captions_val2014.json. ValueError for an archive that is damaged or lacks it."""
    with opened(archive) as zipped:
        member = members(zipped, CAPTIONS, archive)[FILE]
        with files.replacing(folder / "annotations" / FILE) as part:
            extract(zipped, member, part)


def unpack_pictures(archive: Path, folder: Path) -> None:
    """Unpack the pictures that val2014/ lacks to a folder beside it, and move them once all are on the disk.

    Pictures there from a run that was stopped are kept if their checksum is right. ValueError for an archive that is
    damaged or holds no picture, and where val2014/ has other pictures under these names: none is overwritten.
    """
    into, part = folder / FOLDER, folder / PART
    with opened(archive) as zipped:
        infos = members(zipped, PICTURES, archive)
        sizes = {name: (into / name).stat().st_size for name in infos if (into / name).exists()}
        if other := [name for name, size in sizes.items() if size != infos[name].file_size]:
            problem = f"{len(other):,} pictures are not as long as in the archive ({first_few(other)})"
            raise UserError(f"{into}: {problem}; nothing is overwritten: remove them and run `make coco`")
        absent = [name for name in infos if name not in sizes]
        part.mkdir(parents=True, exist_ok=True)
        for name in tqdm(absent, desc="pictures", unit="picture"):
            if not is_complete(part / name, infos[name]):
                extract(zipped, infos[name], part / name)
    os.sync()  # once: to wait for each of 40,504 files takes longer than to fetch them
    into.mkdir(exist_ok=True)
    for name in absent:
        (part / name).replace(into / name)
    shutil.rmtree(part)


@contextmanager
def opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    """A zip file; ValueError where it is damaged, also within the block."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            yield zipped
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{archive}: damaged, or no zip ({error}); remove it and run `make coco`") from error


def members(zipped: zipfile.ZipFile, pattern: re.Pattern[str], archive: Path) -> Members:
    """File name -> member, of the members whose whole path matches. ValueError where there are none."""
    matches = ((pattern.fullmatch(info.filename), info) for info in zipped.infolist())
    infos = {match[1]: info for match, info in matches if match}
    if not infos:
        content = first_few([info.filename for info in zipped.infolist()]) or "nothing"
        raise UserError(f"{archive}: holds no {pattern.pattern}, but {content}; is it COCO's of 2014?")
    return infos


def extract(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """Write a member to `path`; zipfile raises BadZipFile at its end where the checksum is wrong."""
    with zipped.open(member) as source, open(path, "wb") as file:
        shutil.copyfileobj(source, file)


def is_complete(path: Path, member: zipfile.ZipInfo) -> bool:
    """Whether an earlier run has written all of it; the checksum also reveals the empty blocks of a power cut."""
    return path.exists() and path.stat().st_size == member.file_size and zlib.crc32(path.read_bytes()) == member.CRC


@dataclass(frozen=True, kw_only=True)
class CocoRelease:
    """The two archives, and how many images and captions they must give."""

    annotations: RemoteArchive
    pictures: RemoteArchive
    images: int
    captions: int


def fetch(folder: Path, published: CocoRelease) -> Coco:
    """Complete the set in `folder` and open it. Archives stay; nothing is overwritten.

    ValueError where an archive or the set is not as published, and where there is no network: it names the files to put
    in place by hand.
    """
    if captions_file(folder) is None:
        fetch_archive(published.annotations, unpack_captions, folder, published)
    file, present = captions_file(folder), pictures(folder)
    assert file is not None
    if any(image.file_name not in present for image in read_annotations(file).images):
        fetch_archive(published.pictures, unpack_pictures, folder, published)
    coco = Coco.open(folder)
    if (len(coco.images), len(coco.captions)) != (published.images, published.captions):
        numbers = f"{len(coco.images):,} images and {len(coco.captions):,} captions"
        problem = f"{numbers}, {published.images:,} and {published.captions:,} were published"
        raise UserError(f"{captions_file(folder)}: {problem}; is it of another set? Choose another folder")
    return coco


def fetch_archive(
    archive: RemoteArchive, unpack: Callable[[Path, Path], None], folder: Path, published: CocoRelease
) -> None:
    """Unpack an archive that a person or an earlier run put into `folder`, or download it first."""
    path = folder / archive.name
    if not path.exists():
        try:
            download(archive, path)
        except ConnectionError as error:
            raise UserError(by_hand(str(error), folder, published)) from error
    elif wrong := difference(path, archive):
        raise UserError(f"{path}: {wrong}; nothing is overwritten: remove it and run `make coco`")
    unpack(path, folder)


def by_hand(reason: str, folder: Path, published: CocoRelease) -> str:
    """A message that says which missing file to put where."""
    needed = [published.annotations] if captions_file(folder) is None else []
    needed += [published.pictures] if len(pictures(folder)) < published.images else []
    lines = [f"not fetched: {reason}", "Fetch on a machine with a network, copy, and run the same command again:"]
    for archive in needed:
        if not (folder / archive.name).exists():
            size = "size unknown" if archive.size is None else f"{archive.size:,} bytes"
            known_by = f"{size}, sha256 {archive.sha256 or 'unknown'}"
            lines.append(f"  {archive.url}\n    to {folder / archive.name} ({known_by})")
    return "\n".join([*lines, f"Unpacked, {folder}/annotations/{FILE} and {folder}/{FOLDER}/ do as well."])
