"""The modes of `generate`: what each reads of conf/generate.yaml, the pictures that this asks for, how they are drawn.

`MODES` at the end is the table. Text, variations, mix and interpolation draw new pictures; image to image, inpainting
and outpainting redraw given ones, at their own size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.masks import check_mask
from open_kandinsky.generation.prompts import Prompts, is_picture, opened, picture_or_text, read_prompts
from open_kandinsky.pipeline import Pipeline
from open_kandinsky.pipeline.options import (
    MAX_SIDE,
    SIDES,
    broadcast_lists,
    check_margins,
    check_sides,
    check_weights,
)
from open_kandinsky.pipeline.sampling import check_strength

SEEDS = 2**32

Config = Mapping[str, Any]  # the values of conf/generate.yaml by their names


@dataclass(frozen=True)
class PictureRequest:
    """One picture: what it shows in words, its seed, and its other inputs."""

    prompt: str
    seed: int
    made_from: dict[str, Any] = field(default_factory=dict)  # paths of image and mask; margins; a place between two


Draw = Callable[[Pipeline, Config, Sequence[PictureRequest], dict[str, Any]], list[Image.Image]]


@dataclass(frozen=True)
class Mode:
    """A mode: the config's keys that it reads, the pictures that they ask for, and how a batch of them is drawn.

    `draw` gets the pipeline's options, seeds included, as its last argument.
    """

    needs: str
    sources: tuple[str, ...]
    options: tuple[str, ...]
    requests: Callable[[Config], list[PictureRequest]]
    draw: Draw

    @property
    def reads(self) -> tuple[str, ...]:
        return self.sources + self.options


# ---- what the modes share


def texts_of(cfg: Config) -> Prompts:
    """The prompts that were typed, or those of the file."""
    if cfg["prompts_file"] is None:
        return [(prompt, None) for prompt in strings(cfg["prompts"])]
    if cfg["prompts"]:
        raise UserError("prompts and prompts_file are both given: choose one")
    return read_prompts(Path(cfg["prompts_file"]))


def strings(value: Any) -> list[str]:
    """A single string as a list of one."""
    return [str(one) for one in ([value] if isinstance(value, str) else value)]


def counted(cfg: Config, items: Sequence[tuple[str, int | None, dict[str, Any]]]) -> list[PictureRequest]:
    """`count` pictures of each (prompt, seed, made_from). Seeds count up from the item's, or from `seed` for all."""
    repeated = [(*item, k) for item in items for k in range(cfg["count"])]
    return [
        PictureRequest(prompt, checked_seed(cfg["seed"] + i if seed is None else seed + k), made_from)
        for i, (prompt, seed, made_from, k) in enumerate(repeated)
    ]


def checked_seed(seed: int) -> int:
    if not 0 <= seed < SEEDS:
        raise UserError(f"seed {seed}: seeds are from 0 to 2^32 - 1, that of the last picture too")
    return seed


def prompts(batch: Sequence[PictureRequest]) -> list[str]:
    return [one.prompt for one in batch]


def pictures(batch: Sequence[PictureRequest], name: str) -> list[Image.Image]:
    """The pictures in the files that are called `name` (image, mask) in `made_from`."""
    return [opened(one.made_from[name]) for one in batch]


def check_picture(path: str, largest: int | None = None) -> None:
    """ValueError, which names the file, for a file that is no picture, or one of a size that cannot be used."""
    size = opened(path).size
    try:
        check_sides(*size, largest)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def edits(cfg: Config, *names: str) -> Iterator[tuple]:
    """(prompt, its seed, a path of each name), a single one serving for all. Empty if prompts or paths are missing."""
    texts, lists = texts_of(cfg), {name: strings(cfg[name]) for name in names}
    if not texts or not lists[names[0]]:
        return
    for (prompt, seed), *paths in zip(*broadcast_lists(prompts=texts, **lists), strict=True):
        check_picture(paths[0], MAX_SIDE)
        yield prompt, seed, *paths


# ---- mode by mode


def text_requests(cfg: Config) -> list[PictureRequest]:
    return counted(cfg, [(prompt, seed, {}) for prompt, seed in texts_of(cfg)])


def variation_requests(cfg: Config) -> list[PictureRequest]:
    paths = strings(cfg["images"])
    for path in paths:
        check_picture(path)
    return counted(cfg, [(path, None, {}) for path in paths])


def draw_variations(
    pipe: Pipeline, cfg: Config, batch: Sequence[PictureRequest], options: dict[str, Any]
) -> list[Image.Image]:
    images = []
    for path, group in groupby(batch, key=lambda one: one.prompt):
        seeds = [one.seed for one in group]
        images += pipe.variations(opened(path), n=len(seeds), **options | {"seeds": seeds})
    return images


def mix_requests(cfg: Config) -> list[PictureRequest]:
    parts, weights = strings(cfg["parts"]), cfg["part_weights"]
    if len(parts) != len(weights):
        raise UserError(f"{len(parts)} parts but {len(weights)} part_weights: give one weight for each")
    if stray := [weight for weight in weights if not isinstance(weight, int | float)]:
        raise UserError(f"part_weights: {stray[0]!r} is no number")
    if not parts:
        return []
    check_weights(parts, weights)
    for path in filter(is_picture, parts):
        check_picture(path)
    label = " + ".join(f"{w} * {part}" for w, part in zip(weights, parts, strict=True))
    return counted(cfg, [(label, None, {})])


def draw_mix(
    pipe: Pipeline, cfg: Config, batch: Sequence[PictureRequest], options: dict[str, Any]
) -> list[Image.Image]:
    parts = [picture_or_text(part) for part in strings(cfg["parts"])]
    return pipe.mix(parts, cfg["part_weights"], n=len(batch), **options)


def interpolation_requests(cfg: Config) -> list[PictureRequest]:
    """All have the same seed, so that only the embedding changes."""
    ends, n = strings(cfg["between"]), cfg["count"]
    if not ends:
        return []
    if len(ends) != 2:
        raise UserError(f"between={ends}: the two ends, each a picture's path or a text")
    (a, b), seed = ends, checked_seed(cfg["seed"])
    if n < 2:
        raise UserError(f"count={n}: mode=interpolate draws at least 2 pictures, those of both ends")
    for path in filter(is_picture, ends):
        check_picture(path)
    places = [k / (n - 1) for k in range(n)]
    labels = [f"{at:.0%} of the way from {a} to {b}" for at in places]
    labels[0], labels[-1] = a, b
    return [PictureRequest(label, seed, {"at": at}) for label, at in zip(labels, places, strict=True)]


def draw_between(
    pipe: Pipeline, cfg: Config, batch: Sequence[PictureRequest], options: dict[str, Any]
) -> list[Image.Image]:
    a, b = (picture_or_text(end) for end in strings(cfg["between"]))
    return pipe.between(a, b, [one.made_from["at"] for one in batch], **options)


def image_requests(cfg: Config) -> list[PictureRequest]:
    if cfg["strength"] is not None:
        check_strength(cfg["strength"])
    return counted(cfg, [(prompt, seed, {"image": path}) for prompt, seed, path in edits(cfg, "images")])


def inpainting_requests(cfg: Config) -> list[PictureRequest]:
    items = list(edits(cfg, "images", "masks"))
    for _, _, image, mask in items:
        opened_mask = opened(mask)
        try:
            check_mask(opened_mask, opened(image))
        except ValueError as error:
            raise UserError(f"{mask}: {error}") from error
    return counted(cfg, [(prompt, seed, {"image": image, "mask": mask}) for prompt, seed, image, mask in items])


def outpainting_requests(cfg: Config) -> list[PictureRequest]:
    items, margins = list(edits(cfg, "images")), cfg["margins"]
    if items and (not isinstance(margins, list) or len(margins) != len(SIDES)):
        raise UserError(f"margins={margins}: [{', '.join(SIDES)}], four whole numbers of pixels")
    for _, _, path in items:
        check_margins(*margins)
        left, right, top, bottom = margins
        width, height = opened(path).size
        check_sides(left + width + right, top + height + bottom)
    return counted(cfg, [(prompt, seed, {"image": path, "margins": margins}) for prompt, seed, path in items])


def draw_outpainting(
    pipe: Pipeline, cfg: Config, batch: Sequence[PictureRequest], options: dict[str, Any]
) -> list[Image.Image]:
    margins = dict(zip(SIDES, cfg["margins"], strict=True))
    return pipe.outpaint(prompts(batch), pictures(batch, "image"), **margins, **options)


TEXTS = ("prompts", "prompts_file")
DECODER = ("negative_decoder_prompt", "steps", "scale", "sampler")
PRIOR = ("prior_steps", "prior_scale", "prior_sampler", "negative_prompt")
ALL, SIZED = PRIOR + DECODER, ("size", *DECODER)

MODES = {
    "text_to_image": Mode(
        needs="prompts or prompts_file",
        sources=TEXTS,
        options=PRIOR + SIZED,
        requests=text_requests,
        draw=lambda pipe, cfg, batch, options: pipe.text_to_image(prompts(batch), **options),
    ),
    "variations": Mode(
        needs="images",
        sources=("images",),
        options=SIZED,
        requests=variation_requests,
        draw=draw_variations,
    ),
    "mix": Mode(
        needs="parts and part_weights",
        sources=("parts", "part_weights"),
        options=PRIOR + SIZED,
        requests=mix_requests,
        draw=draw_mix,
    ),
    "interpolate": Mode(
        needs="between",
        sources=("between",),
        options=PRIOR + SIZED,
        requests=interpolation_requests,
        draw=draw_between,
    ),
    "image_to_image": Mode(
        needs="images, and prompts or prompts_file",
        sources=(*TEXTS, "images"),
        options=("strength", *ALL),
        requests=image_requests,
        draw=lambda pipe, cfg, batch, options: pipe.image_to_image(prompts(batch), pictures(batch, "image"), **options),
    ),
    "inpaint": Mode(
        needs="images, masks, and prompts or prompts_file",
        sources=(*TEXTS, "images", "masks"),
        options=ALL,
        requests=inpainting_requests,
        draw=lambda pipe, cfg, batch, options: pipe.inpaint(
            prompts(batch), pictures(batch, "image"), pictures(batch, "mask"), **options
        ),
    ),
    "outpaint": Mode(
        needs="images, margins, and prompts or prompts_file",
        sources=(*TEXTS, "images", "margins"),
        options=ALL,
        requests=outpainting_requests,
        draw=draw_outpainting,
    ),
}

__all__ = ["MODES", "Mode", "PictureRequest"]
