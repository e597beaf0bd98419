"""A large file over HTTP: goes on where it stopped, and is there only once it is what it should be."""

import hashlib
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError

TIMEOUT = 60  # seconds without a byte
CHUNK = 1 << 20
HAD_ALL = 416  # the server's answer to one who asks for what comes after the last byte


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A published file; `size` in bytes. What is None is not checked."""

    url: str
    size: int | None
    sha256: str | None

    @property
    def name(self) -> str:
        return urlsplit(self.url).path.rpartition("/")[2]


def download(archive: Archive, path: Path) -> None:
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


def receive_all(archive: Archive, part: Path) -> None:
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


def difference(path: Path, archive: Archive) -> str | None:
    """In what a file is not the published one; None where it is."""
    size = length(path)
    if archive.size is not None and size != archive.size:
        return f"{size:,} bytes, {archive.size:,} were published"
    if archive.sha256 is None:
        return None
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return None if found == archive.sha256 else f"sha256 {found}, {archive.sha256} was published"
