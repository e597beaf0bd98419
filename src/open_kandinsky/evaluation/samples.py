"""The pictures that a system draws for a list of prompts: block by block, by any number of processes, once."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.core.leases import Leases, share
from open_kandinsky.diffusion.noise import check_seeds
from open_kandinsky.evaluation import blocks
from open_kandinsky.evaluation.blocks import Block
from open_kandinsky.evaluation.hashes import lines_sha256
from open_kandinsky.evaluation.subject import Subject
from open_kandinsky.evaluation.versions import machine, versions
from open_kandinsky.pipeline.options import Options

logger = logging.getLogger(__name__)

REQUEST, THREADS = "request.json", "threads"


def independent(seed: int, rows: range) -> list[int]:
    """Noise of its own for every picture."""
    return [seed + row for row in rows]


def one_for_all(seed: int, rows: range) -> list[int]:
    """The same noise for every picture, as text2image-benchmark draws: the pictures are not independent."""
    return [seed] * len(rows)


SEEDS: Mapping[str, Callable[[int, range], list[int]]] = {"independent": independent, "one_for_all": one_for_all}


@dataclass(frozen=True)
class Drawn:
    """One block of pictures to draw."""

    samples: "Samples"
    block: Block

    @property
    def name(self) -> str:
        return self.block.name

    def done(self) -> bool:
        return blocks.marker(self.samples.folder, self.block) is not None

    def do(self) -> None:
        self.samples.draw_block(self.block)


class Samples:
    """Pictures of `prompts` by a subject, in a folder of one request; ValueError where it holds another's.

    `seeds` is one of SEEDS. Blocks are of the whole list, also where only its beginning is wanted: more can be drawn
    later.
    """

    def __init__(self, folder: Path, prompts: Sequence[str], subject: Subject, *, seeds: str, size: int) -> None:
        self.folder, self.prompts, self.subject, self.seeds = folder, prompts, subject, SEEDS[seeds]
        self.blocks = blocks.blocks(len(prompts), size)
        check_seeds(self.seeds(subject.seed, range(len(prompts)))[-1:])
        self.request = {
            "prompts_sha256": lines_sha256(prompts),
            "weights_sha256": dict(subject.weights_sha256),
            "options": dict(subject.options),
            "seed": subject.seed,
            "seeds": seeds,
            "block": size,
        }

    def begin(self) -> None:
        """Write the request down, or hold it against the one that is there."""
        wanted = json.loads(json.dumps(self.request))
        begun = json.loads(files.write_once(self.folder / REQUEST, json.dumps(wanted, indent=1)))
        if differing := [name for name in wanted if begun.get(name) != wanted[name]]:
            told = "; ".join(f"{name} was {begun.get(name)}, now {wanted[name]}" for name in differing)
            raise UserError(f"{self.folder} holds pictures of another request: {told}. Choose another out")

    def draw(self, n: int, leases: Leases) -> None:
        """The first `n` pictures, or somewhat more: whole blocks."""
        self.begin()
        same_threads(self.folder, self.subject.device)
        wanted = self.of(n)
        with tqdm(total=len(wanted), desc="pictures", unit="block") as bar:
            share([Drawn(self, block) for block in wanted], leases, seen=bar.update)

    def draw_block(self, block: Block) -> None:
        start = time.perf_counter()
        seeds = self.seeds(self.subject.seed, block.rows)
        texts = [self.prompts[row] for row in block.rows]
        options = self.subject.options | Options(seeds=seeds)
        images = self.subject.open().text_to_image(texts, **options)
        about = {"seeds": seeds, "seconds": time.perf_counter() - start, "drawn_with": self.drawn_with, **self.origin}
        blocks.write(self.folder, block, images, about)

    @cached_property
    def drawn_with(self) -> dict[str, Any]:
        """What was asked for, and where nothing was, what the weights were set up with."""
        pipe = self.subject.open()
        prior, decoder = pipe.prior.sampling, pipe.decoder.sampling
        own = {"prior_steps": prior.steps, "prior_scale": prior.scale, "prior_sampler": prior.sampler}
        own |= {"steps": decoder.steps, "scale": decoder.scale, "sampler": decoder.sampler, "size": pipe.size}
        own |= {"quantised_latents": pipe.movq.quantise_latents}
        return own | dict(self.subject.options)

    @cached_property
    def origin(self) -> dict[str, Any]:
        return {"machine": machine(), "versions": versions()}

    def of(self, n: int) -> list[Block]:
        """The blocks that hold the first n pictures."""
        return [block for block in self.blocks if block.start < n]

    def markers(self, n: int) -> list[dict[str, Any]]:
        """What each of the first blocks says of itself. ValueError where one is not there."""
        found = [(block, blocks.marker(self.folder, block)) for block in self.of(n)]
        if missing := [row for block, about in found if about is None for row in block.rows]:
            named = ", ".join(map(str, missing[:8]))
            raise UserError(f"{self.folder}: {len(missing)} of {n} pictures are missing ({named}, ...); run it again")
        return [about for _, about in found if about is not None]

    def flat(self, n: int) -> list[int]:
        """Which of the first n have a single colour, or lie in a block with them."""
        return [row for about in self.markers(n) for row in about["flat"]]

    def pictures(self, block: Block) -> list[Image.Image]:
        return blocks.read(self.folder, block)

    def each(self, n: int) -> Iterator[tuple[int, Image.Image]]:
        for block in self.of(n):
            yield from zip(block.rows, self.pictures(block), strict=True)

    def sha256(self, n: int) -> str:
        """Of the first n pictures' pixels, in their order."""
        each = [sha for about in self.markers(n) for sha in about["pixels_sha256"]]
        return lines_sha256(each[:n])


def same_threads(folder: Path, device: str) -> None:
    """On a CPU, compute with as many threads as the process that began the folder: they decide the last bits."""
    if device == "cpu":
        found = files.write_once(folder / THREADS, f"{torch.get_num_threads()}\n")
        if found.strip().isdecimal() and int(found) != torch.get_num_threads():
            logger.info("%s was begun with %s thread(s) a process, and goes on with as many", folder, found.strip())
            torch.set_num_threads(int(found))


def exactly() -> None:
    """Settings under which a machine gives the same numbers again: float32 that is float32, and no choice of kernels
    by trial.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a GPU is first used
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
