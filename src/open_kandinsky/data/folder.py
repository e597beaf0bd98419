"""A folder of pictures with captions, read as tar shards that are never written: `folder:DIR` is an address of them.

Each 1,000 pictures, in the order of their paths, make one shard `folder:DIR/00000`, whose bytes are put together while
they are read. So a folder streams, resumes, is counted and precomputed by the code that reads shards.

Captions lie in a .txt beside each picture, or in one table at the top of the folder, metadata.jsonl or any .csv, with a
column `file_name` (or `image_name`, `file`, `image`) and a column `caption` (or `text`). Further columns are facts that
filters see. A row without its picture and a picture without a caption are bad samples, counted by their reason.
"""

import bisect
import csv
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from open_kandinsky.core.errors import UserError

FOLDER = "folder:"
PER_SHARD = 1000
BLOCK = tarfile.BLOCKSIZE
IMAGES = (".jpg", ".jpeg", ".png", ".webp")  # as in tars
NAMES, CAPTIONS = ("file_name", "image_name", "file", "image"), ("caption", "text")
LARGEST_TABLE = 1 << 30  # bytes
LONGEST_KEY = 80  # bytes of a name in a tar


class Member(NamedTuple):
    """One file of a shard: its name there, and its content: bytes, or the path and size of a file."""

    name: str
    content: bytes | Path
    size: int


class CaptionedPicture(NamedTuple):
    """One sample: its key, its picture (None: a row names a file that is not there), its .txt, its row of the table."""

    key: str
    picture: Path | None
    text: Path | None
    row: Mapping[str, Any] | None

    def members(self) -> Iterator[Member]:
        """Its files in a shard."""
        if self.picture is not None:
            yield Member(f"{self.key}{self.picture.suffix.lower()}", self.picture, self.picture.stat().st_size)
        if self.text is not None:
            yield Member(f"{self.key}.txt", self.text, self.text.stat().st_size)
        if self.row is not None:
            data = json.dumps(self.row, ensure_ascii=False).encode()
            yield Member(f"{self.key}.json", data, len(data))


def folder_urls(url: str) -> list[str]:
    """The shards of an address `folder:DIR`. ValueError where the folder holds no picture, or its table is no table."""
    folder = str(Path(url.removeprefix(FOLDER)).expanduser())
    count = len(pairs_of(folder))
    return [f"{FOLDER}{folder}/{number:05d}" for number in range(-(-count // PER_SHARD))]


def pairs_in(url: str) -> tuple[CaptionedPicture, ...]:
    """The samples of the shard at an address `folder:DIR/NUMBER`."""
    folder, _, number = url.removeprefix(FOLDER).rpartition("/")
    return pairs_of(folder)[int(number) * PER_SHARD : (int(number) + 1) * PER_SHARD]


@lru_cache(maxsize=8)
def pairs_of(folder: str) -> tuple[CaptionedPicture, ...]:
    """All samples of a folder, in the order of their paths; looked up once a process."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder; data.path is a folder of pictures with captions")
    rows = table_of(root)
    pictures = {str(path.relative_to(root)): path for path in walk(root) if path.suffix.lower() in IMAGES}
    if not pictures:
        held = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
        raise UserError(f"{folder}: no picture in it ({', '.join(IMAGES)}); it holds {held}")
    found, keys = [], set()
    for name in sorted({*pictures, *rows}):
        picture = pictures.get(name)
        text = None if picture is None or not (beside := picture.with_suffix(".txt")).is_file() else beside
        found.append(CaptionedPicture(unique(name, keys), picture, text, rows.get(name)))
    return tuple(found)


def walk(root: Path) -> Iterator[Path]:
    """Every file below a folder; links to folders are not followed, hidden files are left out."""
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def unique(name: str, keys: set[str]) -> str:
    """A sample's key: its path without the ending. Dots, which end a key in a tar, become underscores."""
    key = str(Path(name).with_suffix("")).replace(".", "_")
    if key in keys or len(key.encode()) > LONGEST_KEY:
        key = f"{key.encode()[: LONGEST_KEY - 10].decode(errors='ignore')}~{len(keys)}"
    keys.add(key)
    return key


def table_of(root: Path) -> dict[str, dict[str, Any]]:
    """The rows of a folder's table by file name; empty where there is none. ValueError for one without the columns."""
    tables = [path for path in (root / "metadata.jsonl", *sorted(root.glob("*.csv"))) if path.is_file()]
    if not tables:
        return {}
    if len(tables) > 1:
        raise UserError(f"{root}: {' and '.join(path.name for path in tables)}; captions are read from one table")
    path = tables[0]
    if path.stat().st_size > LARGEST_TABLE:
        raise UserError(f"{path}: more than {LARGEST_TABLE:,} bytes; write shards with img2dataset")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = path.suffix == ".jsonl"
            rows = [json.loads(line) for line in file if line.strip()] if lines else list(csv.DictReader(file))
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    return {str(row[name]): row for row, name in map(named, rows, [path] * len(rows))}


def named(row: Any, path: Path) -> tuple[dict[str, Any], str]:
    """A row with its caption under `caption`, and the column that names its file."""
    if not isinstance(row, dict):
        raise UserError(f"{path}: {str(row)[:80]!r} is no row; each is an object with file_name and caption")
    name, caption = (next((column for column in columns if column in row), None) for columns in (NAMES, CAPTIONS))
    if name is None or caption is None:
        there = ", ".join(map(str, row)) or "nothing"
        wanted = f"one of {', '.join(NAMES)}, and one of {', '.join(CAPTIONS)}"
        raise UserError(f"{path}: its columns are {there}; it needs {wanted}")
    return {**row, "caption": row[caption]}, name


class FolderTar(io.RawIOBase):
    """The bytes of one shard of a folder: headers and files, padded as in a tar. A file is opened when it is read.

    OSError for a file that has another size than when the folder was looked through.
    """

    def __init__(self, url: str) -> None:
        some = pairs_in(url)
        if not some:
            raise FileNotFoundError(f"{url}: the folder has no so many pictures any more")
        self.members = [member for pair in some for member in pair.members()]
        lengths = [BLOCK + -(-member.size // BLOCK) * BLOCK for member in self.members]
        self.starts = [0, *accumulate(lengths)]
        self.size, self.at = self.starts[-1] + 2 * BLOCK, 0
        self.kept: tuple[int, bytes] = (-1, b"")  # the piece that was read last: headers come in small reads

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from one member, or from the end's zeros."""
        if self.at >= self.size:
            return 0
        number = bisect.bisect_right(self.starts, self.at) - 1
        if number == len(self.members):
            data = bytes(min(len(buffer), self.size - self.at))
        else:
            begin = self.at - self.starts[number]
            header = begin < BLOCK
            piece = self.header(number) if header else self.body(number)
            data = piece[begin if header else begin - BLOCK :][: len(buffer)]
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def header(self, number: int) -> bytes:
        """The block before a file."""
        info = tarfile.TarInfo(self.members[number].name)
        info.size = self.members[number].size
        return info.tobuf(tarfile.USTAR_FORMAT)

    def body(self, number: int) -> bytes:
        """A file and its padding."""
        if self.kept[0] != number:
            _, content, size = self.members[number]
            data = content if isinstance(content, bytes) else content.read_bytes()
            if len(data) != size:
                raise OSError(f"{content}: {len(data)} bytes, and {size} when the folder was looked through")
            self.kept = number, data + bytes(-size % BLOCK)
        return self.kept[1]


def version_of(url: str) -> tuple[int, str]:
    """A shard's size, and what changes when one of its files does: their newest change and how many they are."""
    some = pairs_in(url)
    stats = [path.stat() for pair in some for path in (pair.picture, pair.text) if path is not None]
    rows = hash_of([pair.row for pair in some])
    return FolderTar(url).size, f"{len(stats)} {max((stat.st_mtime_ns for stat in stats), default=0)} {rows}"


def hash_of(rows: list[Mapping[str, Any] | None]) -> str:
    """A number that tells rows of a table from others, the same in each process."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]
