"""What an evaluator's network makes of a set of pictures: block by block, by any number of processes, once.

Features are kept in files under a name that says what decides them: the network's weights, how a picture is prepared
for it, and the pictures themselves. What has changed is computed anew, and nothing else.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.core.leases import Leases, share
from open_kandinsky.evaluation.blocks import Block
from open_kandinsky.evaluation.hashes import json_sha256


@runtime_checkable
class Pictures(Protocol):
    """A set of pictures in blocks, each with its caption."""

    @property
    def name(self) -> str: ...
    def of(self, n: int) -> list[Block]: ...
    def pictures(self, block: Block) -> list[Image.Image]: ...
    def captions(self, block: Block) -> list[str]: ...
    def converted(self, block: Block) -> dict[str, int]:
        """Of the pictures just read, how many were stored in another mode than RGB, by mode."""
        ...

    def source(self, block: Block) -> str:
        """What decides the block's pictures and captions, as a hash."""
        ...


@runtime_checkable
class Extractor(Protocol):
    """An evaluator's network, loaded when it is first called."""

    @property
    def name(self) -> str: ...
    def identity(self) -> Mapping[str, Any]:
        """All that decides its numbers, its weights' hash among it. ValueError where the weights are not at hand."""
        ...

    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Mapping[str, Tensor]:
        """Features by name, [b d], float32, on the CPU."""
        ...


class Pair(NamedTuple):
    """One network, as drawn and as real pictures are prepared for it."""

    generated: Extractor
    real: Extractor


@dataclass(frozen=True)
class Features:
    """One extractor's features of the first `n` of a set of pictures, in the folder `out`, with leases beside them."""

    out: Path
    pictures: Pictures
    extractor: Extractor
    n: int

    def extract(self) -> None:
        leases = Leases(self.out / "claims" / f"{self.pictures.name}-{self.folder.name}")
        units = [Extracted(self, block) for block in self.pictures.of(self.n)]
        with tqdm(total=len(units), desc=f"{self.pictures.name}: {self.extractor.name}", unit="block") as bar:
            share(units, leases, seen=bar.update)

    def gathered(self) -> dict[str, Tensor]:
        """By name, [n d], in the pictures' order. ValueError where features are not finite."""
        parts = [Extracted(self, block).read() for block in self.pictures.of(self.n)]
        whole = {name: torch.cat([part[name] for part in parts])[: self.n] for name in parts[0]}
        for name, x in whole.items():
            if rows := (~x.isfinite().all(1)).nonzero().flatten().tolist():
                told = f"{self.extractor.name}: features of {len(rows)} {self.pictures.name} pictures are not finite"
                raise UserError(f"{told}, {rows[:8]} among them: look at those pictures ({name})")
        return whole

    def converted(self) -> Counter[str]:
        """How many pictures were stored in another mode than RGB, by mode."""
        each = [Extracted(self, block).about() for block in self.pictures.of(self.n)]
        return sum((Counter(json.loads(about["converted"])) for about in each), Counter())

    @cached_property
    def source(self) -> str:
        """What decides the pictures, as a hash."""
        return hashlib.sha256(" ".join(map(self.pictures.source, self.pictures.of(self.n))).encode()).hexdigest()

    @cached_property
    def folder(self) -> Path:
        key = json_sha256(self.extractor.identity())[:12]
        return self.out / "features" / self.pictures.name / f"{self.extractor.name}-{key}"


@dataclass(frozen=True)
class Extracted:
    """One block's features."""

    features: Features
    block: Block

    @property
    def name(self) -> str:
        return self.block.name

    @property
    def path(self) -> Path:
        return self.features.folder / f"{self.block.name}.safetensors"

    def done(self) -> bool:
        """Whether the file is there, and of the pictures that are."""
        if not self.path.is_file():
            return False
        return self.about()["source"] == self.features.pictures.source(self.block)

    def about(self) -> dict[str, str]:
        with safe_open(self.path, "pt") as file:
            return file.metadata()

    def do(self) -> None:
        pictures = self.features.pictures
        found = self.features.extractor(pictures.pictures(self.block), pictures.captions(self.block))
        about = {"source": pictures.source(self.block), "converted": json.dumps(pictures.converted(self.block))}
        files.write_tensors(self.path, {name: x.contiguous() for name, x in found.items()}, about)

    def read(self) -> dict[str, Tensor]:
        with safe_open(self.path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
