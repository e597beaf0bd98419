"""Pictures from a trained system.

open-kandinsky generate prompts='["a red circle"]' weights=runs/quickstart out=out/circles
open-kandinsky generate mode=variations images='[cat.png]' count=4 weights=runs/quickstart out=out/cats
open-kandinsky generate mode=mix parts='[cat.png, "a red circle"]' part_weights='[0.6, 0.4]' weights=... out=out/mix

A request is what was asked for: it decides every picture. A folder that was begun by the same request goes on where it
stopped; manifest.jsonl is written last, and says that all of it is there.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from open_kandinsky import configuration
from open_kandinsky.data.prompts import Prompts, is_picture, opened, read_prompts
from open_kandinsky.diffusion.samplers import named
from open_kandinsky.evaluation.gallery import Gallery, Picture
from open_kandinsky.load import load, locate
from open_kandinsky.pipeline import Pipeline
from open_kandinsky.weights import store

SEEDS = 2**32
DRAWING = ("size", "steps", "scale", "sampler")
PRIOR = ("prior_steps", "prior_scale", "negative_prompt")

Pictures = Sequence[Picture]
Options = dict[str, Any]
Draw = Callable[[Pipeline, DictConfig, Pictures, Options], list[Image.Image]]


@dataclass(frozen=True)
class Mode:
    """What a mode reads of the request, and how it draws some of its pictures."""

    sources: tuple[str, ...]
    options: tuple[str, ...]
    asked: Callable[[DictConfig], Prompts]
    draw: Draw

    @property
    def reads(self) -> tuple[str, ...]:
        return self.sources + self.options


def asked_texts(cfg: DictConfig) -> Prompts:
    if cfg.prompts_file is not None and cfg.prompts:
        raise ValueError("prompts and prompts_file are both given: choose one")
    if cfg.prompts_file is not None:
        return read_prompts(Path(cfg.prompts_file))
    given = [cfg.prompts] if isinstance(cfg.prompts, str) else cfg.prompts
    return [(str(prompt), None) for prompt in given]


def draw_texts(pipe: Pipeline, cfg: DictConfig, pictures: Pictures, options: Options) -> list[Image.Image]:
    return pipe.text_to_image([p.prompt for p in pictures], seeds=[p.seed for p in pictures], **options)


def asked_images(cfg: DictConfig) -> Prompts:
    paths = [str(path) for path in cfg.images]
    for path in paths:
        opened(path)
    return [(path, None) for path in paths]


def draw_variations(pipe: Pipeline, cfg: DictConfig, pictures: Pictures, options: Options) -> list[Image.Image]:
    made = []
    for path, group in groupby(pictures, key=lambda picture: picture.prompt):
        seeds = [picture.seed for picture in group]
        made += pipe.variations(opened(path), n=len(seeds), seeds=seeds, **options)
    return made


def asked_mix(cfg: DictConfig) -> Prompts:
    parts, weights = [str(part) for part in cfg.parts], list(cfg.part_weights)
    if len(parts) != len(weights):
        raise ValueError(f"{len(parts)} parts but {len(weights)} part_weights: give one weight for each")
    if stray := [weight for weight in weights if not isinstance(weight, int | float)]:
        raise ValueError(f"part_weights: {stray[0]!r} is no number")
    for path in filter(is_picture, parts):
        opened(path)
    return [(" + ".join(f"{w} * {part}" for w, part in zip(weights, parts, strict=True)), None)] if parts else []


def draw_mix(pipe: Pipeline, cfg: DictConfig, pictures: Pictures, options: Options) -> list[Image.Image]:
    parts = [opened(part) if is_picture(part) else part for part in map(str, cfg.parts)]
    seeds = [picture.seed for picture in pictures]
    return pipe.mix(parts, list(cfg.part_weights), n=len(seeds), seeds=seeds, **options)


MODES = {
    "text_to_image": Mode(("prompts", "prompts_file"), PRIOR + DRAWING, asked_texts, draw_texts),
    "variations": Mode(("images",), DRAWING, asked_images, draw_variations),
    "mix": Mode(("parts", "part_weights"), DRAWING, asked_mix, draw_mix),
}


def generate(cfg: DictConfig) -> Path:
    """Draw what is not there yet; returns the folder."""
    mode = mode_of(cfg)
    check(cfg)
    pictures = pictures_of(cfg, mode)
    folders = locate(source(cfg))
    gallery = Gallery(Path(cfg.out), request(cfg, mode, pictures, folders), pictures)
    missing = gallery.missing()
    if missing:
        pipe = load(source(cfg), device=cfg.device)
        options = given(cfg, mode)
        with tqdm(total=len(pictures), initial=len(pictures) - len(missing), desc="pictures", unit="picture") as bar:
            for start in range(0, len(missing), cfg.batch_size):
                batch = missing[start : start + cfg.batch_size]
                gallery.add(batch, mode.draw(pipe, cfg, batch, options), parameters(cfg, mode, pipe))
                bar.update(len(batch))
    gallery.finish()
    return gallery.folder


def mode_of(cfg: DictConfig) -> Mode:
    """ValueError for a mode that there is not, and for a value that the mode would not look at."""
    if cfg.mode not in MODES:
        near = get_close_matches(str(cfg.mode), MODES, n=1, cutoff=0)[0]
        raise ValueError(f"mode={cfg.mode}: no such mode; nearest {near!r}; known: {', '.join(MODES)}")
    mode = MODES[cfg.mode]
    others = {name for other in MODES.values() for name in other.reads} - set(mode.reads)
    if idle := sorted(name for name in others if cfg[name] not in (None, "", [])):
        raise ValueError(f"mode={cfg.mode} does not read {', '.join(idle)}; it reads {', '.join(mode.reads)}")
    return mode


def pictures_of(cfg: DictConfig, mode: Mode) -> list[Picture]:
    """Every picture asked for, `count` of each prompt in a row."""
    asked = mode.asked(cfg)
    if not asked:
        raise ValueError(f"nothing to draw: mode={cfg.mode} needs {' or '.join(mode.sources)}")
    each = [(prompt, own, k) for prompt, own in asked for k in range(cfg.count)]
    return [
        Picture(i, prompt, seeded(cfg.seed + i if own is None else own + k)) for i, (prompt, own, k) in enumerate(each)
    ]


def seeded(seed: int) -> int:
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed {seed}: seeds are from 0 to 2^32 - 1, that of the last picture too")
    return seed


def check(cfg: DictConfig) -> None:
    """ValueError for what can be refused before anything is read."""
    for name in ("count", "batch_size", "steps", "prior_steps"):
        if cfg[name] is not None and (not isinstance(cfg[name], int) or cfg[name] < 1):
            raise ValueError(f"{name}={cfg[name]}: a whole number, at least 1")
    for name, kind in {"seed": int, "scale": int | float, "prior_scale": int | float}.items():
        if cfg[name] is not None and not isinstance(cfg[name], kind):
            raise ValueError(f"{name}={cfg[name]}: not a number")
    if cfg.sampler is not None:
        named(cfg.sampler)
    size_of(cfg)
    try:
        there = torch.device(cfg.device).type != "cuda" or torch.cuda.is_available()
    except RuntimeError as error:
        raise ValueError(f"device={cfg.device}: no such device; cpu, cuda or cuda:1, for example") from error
    if not there:
        raise ValueError(f"device={cfg.device}: this machine has no GPU that torch can use; device=cpu works anywhere")


def request(cfg: DictConfig, mode: Mode, pictures: Sequence[Picture], folders: dict[str, Path]) -> dict[str, Any]:
    """All that decides the pictures: neither the batch's size nor the device is in it."""
    files = [path for path in map(str, [*cfg.images, *cfg.parts]) if is_picture(path)]
    return {
        "mode": cfg.mode,
        **given(cfg, mode),
        "pictures": [[picture.prompt, picture.seed] for picture in pictures],
        "images_sha256": {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files},
        "weights_sha256": {part: store.sha256(folder / store.WEIGHTS) for part, folder in folders.items()},
    }


def parameters(cfg: DictConfig, mode: Mode, pipe: Pipeline) -> dict[str, Any]:
    """How the pictures are drawn, where the weights decide that too."""
    prior, decoder = pipe.prior.sampling, pipe.decoder.sampling
    own = {"prior_steps": prior.steps, "prior_scale": prior.scale}
    own |= {"steps": decoder.steps, "scale": decoder.scale, "sampler": decoder.sampler}
    chosen = {name: own[name] if cfg[name] is None else cfg[name] for name in own if name in mode.reads}
    return chosen | {"size": size_of(cfg) or (pipe.size, pipe.size)}


def given(cfg: DictConfig, mode: Mode) -> dict[str, Any]:
    """The mode's options; None for what is left to the weights."""
    return {name: size_of(cfg) if name == "size" else cfg[name] for name in mode.options}


def size_of(cfg: DictConfig) -> tuple[int, int] | None:
    """(width, height)"""
    sides = list(cfg.size) if OmegaConf.is_list(cfg.size) else [cfg.size, cfg.size]
    if sides == [None, None]:
        return None
    if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(f"size={cfg.size}: a number of pixels or [width, height], each at least 1")
    return sides[0], sides[1]


def source(cfg: DictConfig) -> Any:
    return OmegaConf.to_container(cfg.weights) if OmegaConf.is_config(cfg.weights) else cfg.weights


@configuration.verb("generate")
def main(cfg: DictConfig) -> None:
    print(f"generated: {generate(cfg)}")


if __name__ == "__main__":
    main()
