"""The whole system at toy size, from nothing to pictures: draw a data set, train every network, generate, evaluate.

open-kandinsky quickstart                       to runs/quickstart
open-kandinsky quickstart out=runs/second seed=1

Every part is another verb with overrides of its own. A part that was stopped is begun again; one that was done stays.
"""

import json
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from open_kandinsky.config import compose
from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.shapes.world import toy_world
from open_kandinsky.data.shapes.write import write_coco, write_shapes
from open_kandinsky.evaluate import evaluate
from open_kandinsky.evaluation.toy import QuickstartPart, report_on
from open_kandinsky.precompute import precompute
from open_kandinsky.train import train

PURPOSES = {
    "clip": "CLIP learns which caption goes with which picture",
    "movq": "MoVQ learns to turn pictures into small latents and back, in the end against an adversary",
    "prior": "the diffusion prior learns to turn a caption's embedding into its picture's",
    "prior_linear": "the linear prior, that of the paper's best FID, learns the same by regression",
    "prior_residual": "the residual prior, 18 perceptrons deep, does too",
    "prior_none": "no prior at all, the caption's embedding itself: there is nothing to train",
    "decoder": "the decoder learns to draw a latent from a picture's embedding and the caption",
}

COCO_SHAPED = 64  # pictures, for a first `make eval-coco`


@dataclass
class Parts:
    """What is done, in order. A part is a folder, and is done when that holds part.json."""

    out: Path
    done: dict[str, QuickstartPart] = field(default_factory=dict)

    def do(self, name: str, purpose: str, make: Callable[[Path], object]) -> None:
        folder, mark = self.out / name, self.out / name / "part.json"
        print(f"\n[{name}] {purpose}", flush=True)
        if mark.is_file():
            print(f"done before, in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
            start = time.perf_counter()
            make(folder)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            part = {"purpose": purpose, "seconds": time.perf_counter() - start, "peak_memory_gb": peak}
            files.write(mark, json.dumps(part, indent=2))
        self.done[name] = QuickstartPart(**json.loads(mark.read_text()))


def quickstart(cfg: DictConfig) -> Path:
    """Do what is not done yet; returns the report's path."""
    out = claim(cfg)
    parts = Parts(out)

    def drawn(folder: Path) -> None:
        world = toy_world(size=cfg.dims.image_size)
        write_shapes(folder, world=world, seed=cfg.seed, **cfg.shapes)
        write_coco(folder / "coco", world=world, images=COCO_SHAPED, seed=cfg.seed)

    def encoded(split: str) -> Callable[[Path], object]:
        paths = {"urls": out / "shapes" / split, "clip": out / "clip", "movq": out / "movq"}
        sizes = ["batch_size=256", "max_bad_share=0.0", "latents=float32"]
        return lambda folder: precompute(compose.compose("precompute", given({**paths, "out": folder}) + sizes))

    def trained(overrides: Sequence[str]) -> Callable[[Path], object]:
        mine = [*overrides, f"seed={cfg.seed}"]
        return lambda folder: train(compose.compose("train", mine + given({"root": out, "run_dir": folder})))

    parts.do("shapes", "pictures of shapes are drawn from known attributes, with captions", drawn)
    for name, overrides in cfg.train.items():
        if name == "prior":
            for split in ("train", "seen"):
                parts.do(f"cache/{split}", f"CLIP and MoVQ encode the {split} set, once for all", encoded(split))
        parts.do(str(name), PURPOSES[str(name)], trained(overrides))

    priors = [str(name) for name in cfg.train if "prior" in str(name)]

    def scored(folder: Path) -> None:
        paths = given({"weights": out, "out": folder, "protocol.shapes": out / "shapes"})
        evaluate(compose.compose("evaluate", [*cfg.evaluate, f"priors=[{','.join(priors)}]", *paths]))

    parts.do("scores", "pictures are drawn for captions, and read by rule: do they show what was asked for?", scored)
    return report_on(out, parts.done, seed=cfg.seed)


def claim(cfg: DictConfig) -> Path:
    """The folder to write. ValueError where it holds a quickstart of another configuration, or something else."""
    out = Path(cfg.out)
    path = out / "config.yaml"
    if path.is_file() and OmegaConf.load(path) != cfg:
        raise UserError(f"out={out} holds a quickstart with other settings: choose another out, or remove it")
    if not path.is_file() and not files.is_empty(out):
        raise UserError(f"out={out} is not empty and holds no quickstart: choose another out")
    compose.save(cfg, path)
    return out


def given(paths: dict[str, Path]) -> list[str]:
    """Paths as overrides, quoted: a folder's name may hold spaces, commas or an equals sign."""
    return [f"{key}='{str(path).replace(chr(39), chr(92) + chr(39))}'" for key, path in paths.items()]


@compose.command("quickstart")
def main(cfg: DictConfig) -> None:
    print(f"\nreport: {quickstart(cfg)}")


if __name__ == "__main__":
    main()
