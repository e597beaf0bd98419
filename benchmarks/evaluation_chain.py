"""How long a COCO-30K evaluation takes beside drawing and the evaluators' networks: 30,000 pictures, 40,504 real ones.

    python benchmarks/evaluation_chain.py FOLDER

Pictures of 8 pixels stand for drawn ones, and random features for what networks would find; both are made first, into
FOLDER (1.5 GB, minutes). Timed is the rest of `evaluate`: reading, every default score, report and metrics.json.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from PIL import Image
from torch import Tensor

from open_kandinsky.config import compose
from open_kandinsky.evaluation import samples
from open_kandinsky.evaluation.coco_report import publish
from open_kandinsky.evaluation.coco_run import Run
from open_kandinsky.evaluation.features import ClipFeatures, InceptionFeatures
from open_kandinsky.evaluation.samples import EvalRequest, EvaluatedSystem
from open_kandinsky.weights.published import FoundWeights

IMAGES, PICTURES, BLOCK = 40_504, 30_000, 32
WIDTHS = {"pool": 2048, "logits": 1008, "image": 768, "text": 768}


def coco_shaped(folder: Path) -> Path:
    """All of val2014's numbers of images and captions; every picture is the same small JPEG."""
    if folder.exists():
        return folder
    (folder / "val2014").mkdir(parents=True)
    first = folder / "val2014" / "COCO_val2014_000000000001.jpg"
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(first)
    names = {i: f"COCO_val2014_{i:012d}.jpg" for i in range(1, IMAGES + 1)}
    for name in list(names.values())[1:]:
        (folder / "val2014" / name).hardlink_to(first)
    images = [{"id": i, "file_name": name, "width": 8, "height": 8} for i, name in names.items()]
    notes = [{"id": i, "image_id": i, "caption": f"a photo of thing number {i}"} for i in names]
    (folder / "captions_val2014.json").write_text(json.dumps({"images": images, "annotations": notes}))
    return folder


class Random:
    """In place of an evaluator: features of a spectrum that falls, and a sign of what they are of."""

    def __init__(self, names: Sequence[str]) -> None:
        self.axes = {name: torch.arange(1, WIDTHS[name] + 1) ** -0.55 for name in names}

    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Mapping[str, Tensor]:
        return {name: torch.randn(len(captions), len(axes)) * axes + 0.5 for name, axes in self.axes.items()}


def stand_in(extractor: Any, names: Sequence[str]) -> None:
    extractor.weights = FoundWeights(Path("random"), "0" * 64, True)
    type(extractor).__call__ = lambda self, images, captions: Random(names)(images, captions)


def run_in(folder: Path) -> Run:
    cfg = compose.compose("evaluate", ["protocol=coco30k_default", "weights=random", f"out='{folder}'"])
    protocol = instantiate(cfg.protocol)
    for kind, names in ((InceptionFeatures, ("pool", "logits")), (ClipFeatures, ("image", "text"))):
        for extractor in [protocol.inception, *protocol.clip.values()]:
            if isinstance(extractor, kind):
                stand_in(extractor, names)
    hashes = {"clip": "0", "movq": "0", "prior": "0", "decoder": "0"}
    system = EvaluatedSystem("random", hashes, lambda: None, {}, 0)  # type: ignore
    request = EvalRequest(
        out=folder / "out",
        systems={"prior": system},
        coco=folder / "coco",
        also=[],
        metrics=protocol.metrics,
        limit=None,
        block=BLOCK,
        table=None,
        accept_flat=True,
        real_stats=None,
        accept_unknown_stats=False,
        wandb=None,
    )
    return protocol.prepare(request, request.open_coco())


def drawn(run: Run) -> None:
    """Blocks as drawing leaves them."""
    run.samples.begin()
    levels = np.random.default_rng(0).integers(0, 256, (PICTURES, 8, 8, 3), dtype=np.uint8)
    same = {"seconds": 0.0, "drawn_with": {"scale": 1}, "machine": "", "versions": {"torch": ""}}
    for block in [
        block for block in run.samples.first_blocks(run.n) if samples.marker(run.samples.folder, block) is None
    ]:
        about = {"seeds": list(block.rows), **same}
        samples.write_block(run.samples.folder, block, [Image.fromarray(levels[row]) for row in block.rows], about)


def main() -> None:
    folder = Path(sys.argv[1])
    coco_shaped(folder / "coco")
    run = run_in(folder)
    drawn(run)
    run.extract()
    torch.set_num_threads(2)
    start = time.perf_counter()
    run = run_in(folder)
    run.check()
    run.draw()
    opened = time.perf_counter()
    run.score()
    scored = time.perf_counter()
    print(publish(run, None))
    ended = time.perf_counter()
    print(f"found done: {opened - start:.0f} s; scores: {scored - opened:.0f} s; report: {ended - scored:.0f} s")
    print(f"all but drawing and extraction: {ended - start:.0f} s")


if __name__ == "__main__":
    main()
