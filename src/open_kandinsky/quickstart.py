"""The whole system at toy size, from nothing to pictures: draw a data set, train every network, generate, evaluate.

open-kandinsky quickstart                       to runs/quickstart
open-kandinsky quickstart out=runs/second seed=1

Each part runs another command with overrides of its own. A part that was stopped is done again; a finished one stays.
"""

import json
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
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


def run_part(folder: Path, purpose: str, run: Callable[[Path], object]) -> QuickstartPart:
    """Run a part into its folder, unless that holds part.json, which is written last."""
    mark = folder / "part.json"
    if mark.is_file():
        print(f"done before, in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
        start = time.perf_counter()
        run(folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        part = {"purpose": purpose, "seconds": time.perf_counter() - start, "peak_memory_gb": peak}
        files.write(mark, json.dumps(part, indent=2))
    return QuickstartPart(**json.loads(mark.read_text()))


def quickstart(cfg: DictConfig) -> Path:
    """Run the parts that are not done yet, in order; returns the report's path."""
    out = open_folder(cfg)
    done: dict[str, QuickstartPart] = {}

    def part(name: str, purpose: str, run: Callable[[Path], object]) -> None:
        print(f"\n[{name}] {purpose}", flush=True)
        done[name] = run_part(out / name, purpose, run)

    def draw(folder: Path) -> None:
        world = toy_world(size=cfg.dims.image_size)
        write_shapes(folder, world=world, seed=cfg.seed, **cfg.shapes)
        write_coco(folder / "coco", world=world, images=COCO_SHAPED, seed=cfg.seed)

    def encode(split: str, folder: Path) -> None:
        paths = {"urls": out / "shapes" / split, "clip": out / "clip", "movq": out / "movq", "out": folder}
        options = ["batch_size=256", "max_bad_share=0.0", "latents=float32"]
        precompute(compose.compose("precompute", path_overrides(paths) + options))

    def train_stage(overrides: Sequence[str], folder: Path) -> None:
        paths = path_overrides({"root": out, "run_dir": folder})
        train(compose.compose("train", [*overrides, f"seed={cfg.seed}", *paths]))

    def score(folder: Path) -> None:
        priors = ",".join(str(name) for name in cfg.train if "prior" in str(name))
        paths = path_overrides({"weights": out, "out": folder, "protocol.shapes": out / "shapes"})
        evaluate(compose.compose("evaluate", [*cfg.evaluate, f"priors=[{priors}]", *paths]))

    part("shapes", "pictures of shapes are drawn from known attributes, with captions", draw)
    for name, overrides in cfg.train.items():
        if name == "prior":
            for split in ("train", "seen"):
                part(f"cache/{split}", f"CLIP and MoVQ encode the {split} set, once for all", partial(encode, split))
        part(str(name), PURPOSES[str(name)], partial(train_stage, overrides))
    part("scores", "pictures are drawn for captions, and read by rule: do they show what was asked for?", score)
    return report_on(out, done, seed=cfg.seed)


def open_folder(cfg: DictConfig) -> Path:
    """The output folder, with the config in it. UserError if it holds another quickstart, or something else."""
    out = Path(cfg.out)
    path = out / "config.yaml"
    if path.is_file() and OmegaConf.load(path) != cfg:
        raise UserError(f"out={out} holds a quickstart with other settings: choose another out, or remove it")
    if not path.is_file() and not files.is_empty(out):
        raise UserError(f"out={out} is not empty and holds no quickstart: choose another out")
    compose.save(cfg, path)
    return out


def path_overrides(paths: dict[str, Path]) -> list[str]:
    """Paths as quoted overrides, since a folder's name may hold spaces, commas or an equals sign."""
    return [f"{key}='{str(path).replace(chr(39), chr(92) + chr(39))}'" for key, path in paths.items()]


@compose.command("quickstart")
def main(cfg: DictConfig) -> None:
    print(f"\nreport: {quickstart(cfg)}")


if __name__ == "__main__":
    main()
