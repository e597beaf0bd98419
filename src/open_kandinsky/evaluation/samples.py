"""Pictures in numbered blocks: what an evaluated system draws for a list of prompts, and COCO's real pictures.

A block of drawn pictures is a tar of PNGs and a marker in JSON, which is written last: the block is complete once it is
there. Which pictures a block holds depends on their numbers alone, so what one batch computes does not depend on how
many processes draw, nor on when one of them was stopped.
"""

import hashlib
import io
import json
import logging
import os
import tarfile
import time
from collections import Counter
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

logger = logging.getLogger(__name__)

REQUEST, THREADS = "request.json", "threads"
REAL_BLOCK = 64  # real pictures in a block


@dataclass(frozen=True)
class EvaluatedSystem:
    """The weights to evaluate and the options they are sampled with; `open` loads them when it is first called."""

    prior: str  # the prior's name in tables
    weights_sha256: Mapping[str, str]  # of each part's files
    open: Callable[[], Pipeline]
    options: Options
    seed: int  # picture i is drawn from seed + i
    device: str = "cpu"


@dataclass(frozen=True)
class SampleBlock:
    """Pictures number `start` to `stop` - 1."""

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


def write_block(folder: Path, block: SampleBlock, images: Sequence[Image.Image], about: Mapping[str, Any]) -> None:
    """Write the block's pictures, then its marker: `about`, hashes of the tar and of the pixels, and which are flat."""
    assert len(images) == len(block.rows)
    data = tar_bytes({f"{row:06d}.png": png(image) for row, image in zip(block.rows, images, strict=True)})
    files.write(folder / f"{block.name}.tar", data)
    hashes = {
        "tar_sha256": hashlib.sha256(data).hexdigest(),
        "pixels_sha256": [pixels_sha256(image) for image in images],
        "flat": [row for row, image in zip(block.rows, images, strict=True) if flat(image)],
    }
    files.write(folder / f"{block.name}.json", json.dumps({**hashes, **about}, indent=1))


def marker(folder: Path, block: SampleBlock) -> dict[str, Any] | None:
    """The marker that `write_block` wrote; None while the block is not complete."""
    path = folder / f"{block.name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_block(folder: Path, block: SampleBlock) -> list[Image.Image]:
    """The block's pictures. ValueError where its tar is not the one that was written."""
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


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
    """A tar without dates and owners: the same bytes on any machine on any day."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


def png(image: Image.Image) -> bytes:
    """A PNG file's bytes, little compressed: at zlib's usual level only drawing takes longer than writing."""
    data = io.BytesIO()
    image.save(data, format="png", compress_level=1)
    return data.getvalue()


def pixels_sha256(image: Image.Image) -> str:
    """A hash of size and RGB levels, which does not depend on how the file was compressed."""
    size = f"{image.width}x{image.height}:".encode()
    return hashlib.sha256(size + image.convert("RGB").tobytes()).hexdigest()


NO_COCO = (
    "coco=null: give the folder of captions_val2014.json and val2014/, as `make coco` fetches them; to see the same "
    "without COCO, evaluate protocol=shapes"
)
# options of the sampling
DRAWING = ("size", "steps", "scale", "sampler", "prior_steps", "prior_scale", "prior_sampler", "negative_prompt")
# every option that only some protocols read
OPTIONS = ("coco", "also", "metrics", "limit", "block", "seed", "table", "real_stats", "wandb", *DRAWING)


@dataclass(frozen=True, kw_only=True)
class EvalRequest:
    """The options of `evaluate` beside the protocol, which names in `reads` those of OPTIONS that it uses."""

    out: Path
    systems: Mapping[str, EvaluatedSystem]  # by the prior's folder; the first is the system's own
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

    def open_coco(self) -> Coco:
        """ValueError where no folder was given, or its set is not whole."""
        if self.coco is None:
            raise UserError(NO_COCO)
        return Coco.open(self.coco)

    @property
    def system(self) -> EvaluatedSystem:
        """The one system. ValueError where there are several."""
        if len(self.systems) != 1:
            problem = f"priors={list(self.systems)}: this protocol scores one system a run"
            raise UserError(f"{problem}; add -m and sweep over lists of one, priors='[prior],[prior_linear]'")
        return next(iter(self.systems.values()))


def independent(seed: int, rows: range) -> list[int]:
    """Another seed for every picture."""
    return [seed + row for row in rows]


def one_for_all(seed: int, rows: range) -> list[int]:
    """One seed for every picture, as text2image-benchmark draws: the pictures are not independent."""
    return [seed] * len(rows)


SEEDS: Mapping[str, Callable[[int, range], list[int]]] = {"independent": independent, "one_for_all": one_for_all}


@dataclass(frozen=True)
class DrawUnit:
    """The drawing of one block, as work that processes share."""

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
    """The pictures that a system draws for `prompts`, in a folder of one request; ValueError where it holds another's.

    `seeds` is one of SEEDS. Blocks of `size` pictures divide the whole list, also where only its beginning is drawn, so
    that more can be drawn later.
    """

    name = "generated"

    def __init__(self, folder: Path, prompts: Sequence[str], system: EvaluatedSystem, *, seeds: str, size: int) -> None:
        self.folder, self.prompts, self.system, self.seeds = folder, prompts, system, SEEDS[seeds]
        self.blocks = blocks(len(prompts), size)
        check_seeds(self.seeds(system.seed, range(len(prompts)))[-1:])
        self.request = {
            "prompts_sha256": lines_sha256(prompts),
            "weights_sha256": dict(system.weights_sha256),
            "options": dict(system.options),
            "seed": system.seed,
            "seeds": seeds,
            "block": size,
        }

    def begin(self) -> None:
        """Write request.json, or compare it with the one that is there."""
        request = json.loads(json.dumps(self.request))
        before = json.loads(files.write_once(self.folder / REQUEST, json.dumps(request, indent=1)))
        if differing := [name for name in request if before.get(name) != request[name]]:
            changes = "; ".join(f"{name} was {before.get(name)}, now {request[name]}" for name in differing)
            raise UserError(f"{self.folder} holds pictures of another request: {changes}. Choose another out")

    def draw(self, n: int, leases: Leases) -> None:
        """Draw the blocks that hold the first `n` pictures, as far as no process has done so."""
        self.begin()
        same_threads(self.folder, self.system.device)
        units = [DrawUnit(self, block) for block in self.first_blocks(n)]
        with tqdm(total=len(units), desc="pictures", unit="block") as bar:
            share(units, leases, seen=bar.update)

    def draw_block(self, block: SampleBlock) -> None:
        start = time.perf_counter()
        seeds = self.seeds(self.system.seed, block.rows)
        options = self.system.options | Options(seeds=seeds)
        images = self.system.open().text_to_image(self.captions(block), **options)
        seconds = time.perf_counter() - start
        origin = {"machine": machine(), "versions": versions()}
        about = {"seeds": seeds, "seconds": seconds, "drawn_with": self.drawn_with, **origin}
        write_block(self.folder, block, images, about)

    @cached_property
    def drawn_with(self) -> dict[str, Any]:
        """The sampling's options: the defaults that came with the weights, and over them the request's."""
        pipe = self.system.open()
        prior, decoder = pipe.prior.sampling, pipe.decoder.sampling
        defaults = {"prior_steps": prior.steps, "prior_scale": prior.scale, "prior_sampler": prior.sampler}
        defaults |= {"steps": decoder.steps, "scale": decoder.scale, "sampler": decoder.sampler, "size": pipe.size}
        defaults |= {"quantised_latents": pipe.movq.quantise_latents}
        return defaults | dict(self.system.options)

    def first_blocks(self, n: int) -> list[SampleBlock]:
        """The blocks that hold the first n pictures."""
        return [block for block in self.blocks if block.start < n]

    def markers(self, n: int) -> list[dict[str, Any]]:
        """The markers of the first blocks. ValueError where one is missing."""
        blocks = self.first_blocks(n)
        markers = [marker(self.folder, block) for block in blocks]
        if missing := [
            row for block, about in zip(blocks, markers, strict=True) if about is None for row in block.rows
        ]:
            some = ", ".join(map(str, missing[:8]))
            raise UserError(f"{self.folder}: {len(missing)} of {n} pictures are missing ({some}, ...); run it again")
        return [about for about in markers if about is not None]

    def flat(self, n: int) -> list[int]:
        """The numbers of the pictures of a single colour in the blocks of the first n."""
        return [row for about in self.markers(n) for row in about["flat"]]

    def pictures(self, block: SampleBlock) -> list[Image.Image]:
        return read_block(self.folder, block)

    def captions(self, block: SampleBlock) -> list[str]:
        return [self.prompts[row] for row in block.rows]

    def converted(self, block: SampleBlock) -> dict[str, int]:
        return {}

    def source(self, block: SampleBlock) -> str:
        """A hash of the block's tar and captions."""
        about = marker(self.folder, block)
        return lines_sha256([about["tar_sha256"] if about else "", *self.captions(block)])

    def each(self, n: int) -> Iterator[tuple[int, Image.Image]]:
        """(number, picture) of the pictures in the first blocks."""
        for block in self.first_blocks(n):
            yield from zip(block.rows, self.pictures(block), strict=True)

    def sha256(self, n: int) -> str:
        """A hash of the first n pictures' pixels, in their order."""
        return lines_sha256([sha for about in self.markers(n) for sha in about["pixels_sha256"]][:n])


@dataclass(frozen=True)
class RealPictures:
    """COCO's pictures of these ids, each with a caption or an empty text."""

    ids: Sequence[int]
    texts: Sequence[str]
    coco: Coco

    @property
    def name(self) -> str:
        return f"real-{lines_sha256([str(i) for i in self.ids])[:8]}"

    def first_blocks(self, n: int) -> list[SampleBlock]:
        return [block for block in blocks(len(self.ids), REAL_BLOCK) if block.start < n]

    def pictures(self, block: SampleBlock) -> list[Image.Image]:
        return [self.coco.picture(self.ids[row]) for row in block.rows]

    def captions(self, block: SampleBlock) -> list[str]:
        return [self.texts[row] for row in block.rows]

    def converted(self, block: SampleBlock) -> dict[str, int]:
        modes = [self.coco.converted.get(self.ids[row]) for row in block.rows]
        return dict(Counter(mode for mode in modes if mode is not None))

    def source(self, block: SampleBlock) -> str:
        """A hash of ids, file sizes and captions. A picture that was replaced usually has another size, which costs no
        reading."""
        sizes = [f"{self.ids[row]} {self.coco.size_of(self.ids[row])}" for row in block.rows]
        return lines_sha256([*sizes, *self.captions(block)])


def same_threads(folder: Path, device: str) -> None:
    """On a CPU, compute with as many threads as the process that began the folder: they decide the last bits."""
    if device == "cpu":
        threads = files.write_once(folder / THREADS, f"{torch.get_num_threads()}\n").strip()
        if threads.isdecimal() and int(threads) != torch.get_num_threads():
            logger.info("%s was begun with %s thread(s) a process, and goes on with as many", folder, threads)
            torch.set_num_threads(int(threads))


def make_deterministic() -> None:
    """Let a machine give the same numbers again: float32 without TF32, and no choice of kernels by trial."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a GPU is first used
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
