"""Sets of pictures that are held against each other: drawn ones and real ones."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from open_kandinsky.data.coco import Coco
from open_kandinsky.evaluation import blocks
from open_kandinsky.evaluation.blocks import Block
from open_kandinsky.evaluation.hashes import lines_sha256
from open_kandinsky.evaluation.samples import Samples

REAL_BLOCK = 64


@dataclass(frozen=True)
class Generated:
    """What a system drew."""

    samples: Samples
    name: str = "generated"

    def of(self, n: int) -> list[Block]:
        return self.samples.of(n)

    def pictures(self, block: Block) -> list[Image.Image]:
        return self.samples.pictures(block)

    def captions(self, block: Block) -> list[str]:
        return [self.samples.prompts[row] for row in block.rows]

    def converted(self, block: Block) -> dict[str, int]:
        return {}

    def source(self, block: Block) -> str:
        about = blocks.marker(self.samples.folder, block)
        return lines_sha256([about["tar_sha256"] if about else "", *self.captions(block)])


@dataclass(frozen=True)
class Real:
    """Pictures of COCO. A file's size tells when it has become another, without reading it."""

    ids: Sequence[int]
    texts: Sequence[str]
    coco: Coco

    @property
    def name(self) -> str:
        return f"real-{lines_sha256([str(i) for i in self.ids])[:8]}"

    def of(self, n: int) -> list[Block]:
        return [block for block in self.blocks if block.start < n]

    @cached_property
    def blocks(self) -> list[Block]:
        return blocks.blocks(len(self.ids), REAL_BLOCK)

    def pictures(self, block: Block) -> list[Image.Image]:
        return [self.coco.picture(self.ids[row]) for row in block.rows]

    def captions(self, block: Block) -> list[str]:
        return [self.texts[row] for row in block.rows]

    def converted(self, block: Block) -> dict[str, int]:
        modes = [self.coco.converted.get(self.ids[row]) for row in block.rows]
        return dict(Counter(mode for mode in modes if mode is not None))

    def source(self, block: Block) -> str:
        each = [f"{self.ids[row]} {self.coco.size_of(self.ids[row])}" for row in block.rows]
        return lines_sha256([*each, *self.captions(block)])
