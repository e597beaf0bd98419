"""What is evaluated: a system, and how it is told to draw.

Fixed blocks of numbered pictures on a disk: a tar of PNGs, and a marker, written last, that says it is whole.

Which pictures are in a block depends on their numbers alone, so what one batch holds does not depend on how many
processes draw, nor on when any of them was stopped.

What `evaluate` was told beside the protocol.

The pictures that a system draws for a list of prompts: block by block, by any number of processes, once.
"""

import hashlib
import io
import json
import logging
import os
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.core.leases import Leases, share
from open_kandinsky.data.coco import Coco
from open_kandinsky.diffusion.samplers import check_seeds
from open_kandinsky.evaluation.report import lines_sha256, machine, versions
from open_kandinsky.pipeline import Pipeline
from open_kandinsky.pipeline.options import Options


@dataclass(frozen=True)
class Subject:
    """`open` loads the weights when it is first called: where nothing is left to draw, it is not."""

    prior: str  # what the prior is called in tables
    weights_sha256: Mapping[str, str]  # of each part's files
    open: Callable[[], Pipeline]
    options: Options
    seed: int  # picture i is drawn from seed + i
    device: str = "cpu"


@dataclass(frozen=True)
class SampleBlock:
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


def blocks(n: int, size: int) -> list[SampleBlock]:
    """0 to n - 1 in blocks of `size`; the last is what is left. ValueError unless both are at least 1."""
    if n < 1 or size < 1:
        raise UserError(f"{n} pictures in blocks of {size}: at least 1 of each")
    return [SampleBlock(index, start, min(start + size, n)) for index, start in enumerate(range(0, n, size))]


def write(folder: Path, block: SampleBlock, images: Sequence[Image.Image], about: Mapping[str, Any]) -> None:
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


def marker(folder: Path, block: SampleBlock) -> dict[str, Any] | None:
    """What `write` wrote last; None while the block is not whole."""
    path = folder / f"{block.name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read(folder: Path, block: SampleBlock) -> list[Image.Image]:
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


NO_COCO = (
    "coco=null: give the folder of captions_val2014.json and val2014/, as `make coco` fetches them; to see the same "
    "without COCO, evaluate protocol=shapes"
)
# how a system is told to draw
DRAWING = ("size", "steps", "scale", "sampler", "prior_steps", "prior_scale", "prior_sampler", "negative_prompt")
# all that has a meaning for some protocols alone
OPTIONS = ("coco", "also", "metrics", "limit", "block", "seed", "table", "real_stats", "wandb", *DRAWING)


@dataclass(frozen=True, kw_only=True)
class EvalRequest:
    """A protocol says in `reads` what of it has a meaning for it; what has none is refused where it was typed."""

    out: Path
    subjects: Mapping[str, Subject]  # by the name of the prior; the first is the system's own
    coco: Path | None
    also: Sequence[Any]  # protocols that score the same pictures
    metrics: Sequence[str]
    limit: int | None
    block: int
    table: Path | None  # a folder of runs, of which this is one
    accept_flat: bool
    real_stats: Path | None  # npz of mu and sigma, in place of real pictures
    accept_unknown_stats: bool
    wandb: str | None  # project

    def opened_coco(self) -> Coco:
        """ValueError where none was given, or what was given is not whole."""
        if self.coco is None:
            raise UserError(NO_COCO)
        return Coco.open(self.coco)

    @property
    def subject(self) -> Subject:
        """The one system. ValueError where several were asked for."""
        if len(self.subjects) != 1:
            told = f"priors={list(self.subjects)}: this protocol scores one system a run"
            raise UserError(f"{told}; add -m and sweep over lists of one, priors='[prior],[prior_linear]'")
        return next(iter(self.subjects.values()))


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
class DrawUnit:
    """One block of pictures to draw."""

    samples: "Samples"
    block: SampleBlock

    @property
    def name(self) -> str:
        return self.block.name

    def done(self) -> bool:
        return marker(self.samples.folder, self.block) is not None

    def do(self) -> None:
        self.samples.draw_block(self.block)


class Samples:
    """Pictures of `prompts` by a subject, in a folder of one request; ValueError where it holds another's.

    `seeds` is one of SEEDS. Blocks are of the whole list, also where only its beginning is wanted: more can be drawn
    later.
    """

    def __init__(self, folder: Path, prompts: Sequence[str], subject: Subject, *, seeds: str, size: int) -> None:
        self.folder, self.prompts, self.subject, self.seeds = folder, prompts, subject, SEEDS[seeds]
        self.blocks = blocks(len(prompts), size)
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
            share([DrawUnit(self, block) for block in wanted], leases, seen=bar.update)

    def draw_block(self, block: SampleBlock) -> None:
        start = time.perf_counter()
        seeds = self.seeds(self.subject.seed, block.rows)
        texts = [self.prompts[row] for row in block.rows]
        options = self.subject.options | Options(seeds=seeds)
        images = self.subject.open().text_to_image(texts, **options)
        about = {"seeds": seeds, "seconds": time.perf_counter() - start, "drawn_with": self.drawn_with, **self.origin}
        write(self.folder, block, images, about)

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

    def of(self, n: int) -> list[SampleBlock]:
        """The blocks that hold the first n pictures."""
        return [block for block in self.blocks if block.start < n]

    def markers(self, n: int) -> list[dict[str, Any]]:
        """What each of the first blocks says of itself. ValueError where one is not there."""
        found = [(block, marker(self.folder, block)) for block in self.of(n)]
        if missing := [row for block, about in found if about is None for row in block.rows]:
            named = ", ".join(map(str, missing[:8]))
            raise UserError(f"{self.folder}: {len(missing)} of {n} pictures are missing ({named}, ...); run it again")
        return [about for _, about in found if about is not None]

    def flat(self, n: int) -> list[int]:
        """Which of the first n have a single colour, or lie in a block with them."""
        return [row for about in self.markers(n) for row in about["flat"]]

    def pictures(self, block: SampleBlock) -> list[Image.Image]:
        return read(self.folder, block)

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
