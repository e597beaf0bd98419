"""Where the pictures of val2014 lie: files of a folder, or members of tar shards that hold those very files."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from open_kandinsky.core.errors import UserError

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
