"""Pictures that somebody else has drawn, as files of one folder."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from open_kandinsky.evaluation import blocks
from open_kandinsky.evaluation.blocks import Block
from open_kandinsky.evaluation.coco.pictures import REAL_BLOCK
from open_kandinsky.evaluation.hashes import lines_sha256
from open_kandinsky.evaluation.selfcheck.sample import picture
from open_kandinsky.weights import store


@dataclass(frozen=True)
class Files:
    """The PNGs of a folder in the order of their names; they have no captions here."""

    folder: Path
    name: str

    @cached_property
    def paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.png"))

    def of(self, n: int) -> list[Block]:
        return blocks.blocks(n, REAL_BLOCK)

    def pictures(self, block: Block) -> list[Image.Image]:
        return [picture(self.paths[row]) for row in block.rows]

    def captions(self, block: Block) -> list[str]:
        return [""] * len(block.rows)

    def converted(self, block: Block) -> dict[str, int]:
        return {}

    def source(self, block: Block) -> str:
        """Of names and sizes: a file's size tells when it has become another, without reading it."""
        paths = [self.paths[row] for row in block.rows]
        return lines_sha256([f"{path.name} {path.stat().st_size}" for path in paths])

    def sha256(self) -> str:
        """Over the lines `name SHA-256`."""
        return lines_sha256([f"{path.name} {store.sha256(path)}" for path in self.paths])
