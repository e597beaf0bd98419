"""Fixed blocks of numbered pictures on a disk: a tar of PNGs, and a marker, written last, that says it is whole.

Which pictures are in a block depends on their numbers alone, so what one batch holds does not depend on how many
processes draw, nor on when any of them was stopped.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError


@dataclass(frozen=True)
class Block:
    """The numbers `start` to `stop` - 1."""

    index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.index:06d}"

    @property
    def rows(self) -> range:
        return range(self.start, self.stop)


def blocks(n: int, size: int) -> list[Block]:
    """0 to n - 1 in blocks of `size`; the last is what is left. ValueError unless both are at least 1."""
    if n < 1 or size < 1:
        raise UserError(f"{n} pictures in blocks of {size}: at least 1 of each")
    return [Block(index, start, min(start + size, n)) for index, start in enumerate(range(0, n, size))]


def write(folder: Path, block: Block, images: Sequence[Image.Image], about: Mapping[str, Any]) -> None:
    """The block's pictures, then its marker: `about`, hashes of the file and of the pixels, and which are flat."""
    assert len(images) == len(block.rows)
    data = packed({f"{row:06d}.png": png(image) for row, image in zip(block.rows, images, strict=True)})
    files.write(folder / f"{block.name}.tar", data)
    found = {
        "tar_sha256": hashlib.sha256(data).hexdigest(),
        "pixels_sha256": [pixels_sha256(image) for image in images],
        "flat": [row for row, image in zip(block.rows, images, strict=True) if flat(image)],
    }
    files.write(folder / f"{block.name}.json", json.dumps({**found, **about}, indent=1))


def marker(folder: Path, block: Block) -> dict[str, Any] | None:
    """What `write` wrote last; None while the block is not whole."""
    path = folder / f"{block.name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read(folder: Path, block: Block) -> list[Image.Image]:
    """The block's pictures. ValueError where its file is not the one that was written."""
    path, about = folder / f"{block.name}.tar", marker(folder, block)
    data = path.read_bytes() if path.is_file() else b""
    if about is None or hashlib.sha256(data).hexdigest() != about["tar_sha256"]:
        raise UserError(f"{path}: not the file that was written; remove {path.with_suffix('.json')} to draw it again")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [tar.extractfile(f"{row:06d}.png") for row in block.rows]
        return [Image.open(io.BytesIO(member.read()), formats=["PNG"]) for member in members if member is not None]


def flat(image: Image.Image) -> bool:
    """Whether it has one colour throughout: a safety filter's frame, or a model that has collapsed."""
    levels = np.asarray(image.convert("RGB"))
    return bool((levels == levels[0, 0]).all())


def packed(members: Mapping[str, bytes]) -> bytes:
    """A tar of nothing but names and contents: the same bytes on any machine on any day."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


def png(image: Image.Image) -> bytes:
    """Lossless, little compressed: at zlib's usual level writing takes longer than everything else but drawing."""
    data = io.BytesIO()
    image.save(data, format="png", compress_level=1)
    return data.getvalue()


def pixels_sha256(image: Image.Image) -> str:
    """Of size and RGB levels: what a picture shows, however it was compressed."""
    size = f"{image.width}x{image.height}:".encode()
    return hashlib.sha256(size + image.convert("RGB").tobytes()).hexdigest()
