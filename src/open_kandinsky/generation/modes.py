"""What is asked for: a request, which is the values of conf/generate.yaml by their names, and its pictures.

Modes that draw new pictures: from texts, from pictures' embeddings, and from what is between.

Modes that redraw pictures, at their own size.

The modes of `generate`: what each reads of a request, the pictures that this asks for, and how they are drawn.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.masks import check_mask
from open_kandinsky.generation.prompts import Prompts, is_picture, opened, part_of, read_prompts
from open_kandinsky.pipeline import Pipeline
from open_kandinsky.pipeline.options import MAX_SIDE, SIDES, broadcast_lists, check_margins, check_sides, check_weights
from open_kandinsky.pipeline.sampling import check_strength

SEEDS = 2**32

Request = Mapping[str, Any]
Options = dict[str, Any]


@dataclass(frozen=True)
class PictureRequest:
    """One picture: what it shows in words, its seed, and what else it alone is made from."""

    prompt: str
    seed: int
    made_from: dict[str, Any] = field(default_factory=dict)  # paths of image and mask; margins; where between two


Draw = Callable[[Pipeline, Request, Sequence[PictureRequest], Options], list[Image.Image]]


@dataclass(frozen=True)
class Mode:
    """What a mode reads of a request, what that asks for, and how some of it is drawn."""

    needs: str
    sources: tuple[str, ...]
    options: tuple[str, ...]
    asked: Callable[[Request], list[PictureRequest]]
    draw: Draw

    @property
    def reads(self) -> tuple[str, ...]:
        return self.sources + self.options


def texts_of(request: Request) -> Prompts:
    if request["prompts_file"] is not None and request["prompts"]:
        raise UserError("prompts and prompts_file are both given: choose one")
    if request["prompts_file"] is not None:
        return read_prompts(Path(request["prompts_file"]))
    return [(prompt, None) for prompt in strings(request["prompts"])]


def strings(given: Any) -> list[str]:
    """One or several, as typed."""
    return [str(one) for one in ([given] if isinstance(given, str) else given)]


def each(request: Request, items: Sequence[tuple[str, int | None, dict[str, Any]]]) -> list[PictureRequest]:
    """`count` pictures of each in a row: picture i has seed + i, or where an item has its own seed, from that on."""
    counted = [(*item, k) for item in items for k in range(request["count"])]
    return [
        PictureRequest(prompt, seeded(request["seed"] + i if own is None else own + k), made_from)
        for i, (prompt, own, made_from, k) in enumerate(counted)
    ]


def seeded(seed: int) -> int:
    if not 0 <= seed < SEEDS:
        raise UserError(f"seed {seed}: seeds are from 0 to 2^32 - 1, that of the last picture too")
    return seed


def seeds(asked: Sequence[PictureRequest]) -> list[int]:
    return [one.seed for one in asked]


def prompts(asked: Sequence[PictureRequest]) -> list[str]:
    return [one.prompt for one in asked]


def looked_at(path: str, largest: int | None = None) -> Image.Image:
    """The picture in a file; ValueError names the file where it is none, or of a size that cannot be used."""
    image = opened(path)
    try:
        check_sides(*image.size, largest)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return image


def editable(path: str) -> Image.Image:
    """The same of a picture that is to be drawn at its own size."""
    return looked_at(path, MAX_SIDE)


def asked_texts(request: Request) -> list[PictureRequest]:
    return each(request, [(prompt, own, {}) for prompt, own in texts_of(request)])


def draw_texts(
    pipe: Pipeline, request: Request, asked: Sequence[PictureRequest], options: Options
) -> list[Image.Image]:
    return pipe.text_to_image(prompts(asked), seeds=seeds(asked), **options)


def asked_variations(request: Request) -> list[PictureRequest]:
    paths = strings(request["images"])
    for path in paths:
        looked_at(path)
    return each(request, [(path, None, {}) for path in paths])


def draw_variations(
    pipe: Pipeline, request: Request, asked: Sequence[PictureRequest], options: Options
) -> list[Image.Image]:
    made = []
    for path, group in groupby(asked, key=lambda one: one.prompt):
        own = [one.seed for one in group]
        made += pipe.variations(opened(path), n=len(own), seeds=own, **options)
    return made


def asked_mix(request: Request) -> list[PictureRequest]:
    parts, weights = strings(request["parts"]), request["part_weights"]
    if len(parts) != len(weights):
        raise UserError(f"{len(parts)} parts but {len(weights)} part_weights: give one weight for each")
    if stray := [weight for weight in weights if not isinstance(weight, int | float)]:
        raise UserError(f"part_weights: {stray[0]!r} is no number")
    if parts:
        check_weights(parts, weights)
    for path in filter(is_picture, parts):
        looked_at(path)
    label = " + ".join(f"{w} * {part}" for w, part in zip(weights, parts, strict=True))
    return each(request, [(label, None, {})] if parts else [])


def draw_mix(pipe: Pipeline, request: Request, asked: Sequence[PictureRequest], options: Options) -> list[Image.Image]:
    parts = [part_of(part) for part in strings(request["parts"])]
    return pipe.mix(parts, request["part_weights"], n=len(asked), seeds=seeds(asked), **options)


def asked_between(request: Request) -> list[PictureRequest]:
    """All from one seed, so that the embedding alone moves."""
    ends, n = strings(request["between"]), request["count"]
    if not ends:
        return []
    if len(ends) != 2:
        raise UserError(f"between={ends}: the two ends, each a picture's path or a text")
    (a, b), seed = ends, seeded(request["seed"])
    if n < 2:
        raise UserError(f"count={n}: mode=interpolate draws at least 2 pictures, those of both ends")
    for path in filter(is_picture, ends):
        looked_at(path)
    return [PictureRequest(on_the_way(a, b, k / (n - 1)), seed, {"at": k / (n - 1)}) for k in range(n)]


def on_the_way(a: str, b: str, at: float) -> str:
    """What a picture of an interpolation shows."""
    return {0.0: a, 1.0: b}.get(at, f"{at:.0%} of the way from {a} to {b}")


def draw_between(
    pipe: Pipeline, request: Request, asked: Sequence[PictureRequest], options: Options
) -> list[Image.Image]:
    a, b = (part_of(end) for end in strings(request["between"]))
    return pipe.between(a, b, [one.made_from["at"] for one in asked], seeds=seeds(asked), **options)


def asked_images(request: Request) -> list[PictureRequest]:
    if request["strength"] is not None:
        check_strength(request["strength"])
    return each(request, [(prompt, own, {"image": path}) for prompt, own, path in together(request, "images")])


def draw_images(
    pipe: Pipeline, request: Request, asked: Sequence[PictureRequest], options: Options
) -> list[Image.Image]:
    return pipe.image_to_image(prompts(asked), files(asked, "image"), seeds=seeds(asked), **options)


def asked_inpainting(request: Request) -> list[PictureRequest]:
    items = list(together(request, "images", "masks"))
    for _, _, image, mask in items:
        check_mask_file(mask, image)
    return each(request, [(prompt, own, {"image": image, "mask": mask}) for prompt, own, image, mask in items])


def draw_inpainting(
    pipe: Pipeline, request: Request, asked: Sequence[PictureRequest], options: Options
) -> list[Image.Image]:
    images, masks = files(asked, "image"), files(asked, "mask")
    return pipe.inpaint(prompts(asked), images, masks, seeds=seeds(asked), **options)


def asked_outpainting(request: Request) -> list[PictureRequest]:
    items = list(together(request, "images"))
    margins = request["margins"]
    if items and (not isinstance(margins, list) or len(margins) != len(SIDES)):
        raise UserError(f"margins={margins}: [{', '.join(SIDES)}], four whole numbers of pixels")
    for _, _, path in items:
        check_canvas(path, margins)
    return each(request, [(prompt, own, {"image": path, "margins": margins}) for prompt, own, path in items])


def draw_outpainting(
    pipe: Pipeline, request: Request, asked: Sequence[PictureRequest], options: Options
) -> list[Image.Image]:
    margins = dict(zip(SIDES, request["margins"], strict=True))
    return pipe.outpaint(prompts(asked), files(asked, "image"), seeds=seeds(asked), **margins, **options)


def together(request: Request, *names: str) -> Iterator[tuple]:
    """Prompt, its own seed, and a file of each name, one of each serving for all. Nothing where any is not given."""
    texts, lists = texts_of(request), {name: strings(request[name]) for name in names}
    if not texts or not lists[names[0]]:
        return
    for (prompt, own), *paths in zip(*broadcast_lists(prompts=texts, **lists), strict=True):
        editable(paths[0])
        yield prompt, own, *paths


def files(asked: Sequence[PictureRequest], name: str) -> list[Image.Image]:
    return [opened(one.made_from[name]) for one in asked]


def check_mask_file(mask: str, image: str) -> None:
    """ValueError names the mask's file."""
    opened_mask = opened(mask)
    try:
        check_mask(opened_mask, opened(image))
    except ValueError as error:
        raise UserError(f"{mask}: {error}") from error


def check_canvas(path: str, margins: Sequence[int]) -> None:
    check_margins(*margins)
    left, right, top, bottom = margins
    width, height = opened(path).size
    check_sides(left + width + right, top + height + bottom)


TEXTS = ("prompts", "prompts_file")
DECODER = ("negative_decoder_prompt", "steps", "scale", "sampler")
PRIOR = ("prior_steps", "prior_scale", "prior_sampler", "negative_prompt")
ALL, SIZED = PRIOR + DECODER, ("size", *DECODER)

MODES = {
    "text_to_image": Mode(
        needs="prompts or prompts_file",
        sources=TEXTS,
        options=PRIOR + SIZED,
        asked=asked_texts,
        draw=draw_texts,
    ),
    "variations": Mode(
        needs="images",
        sources=("images",),
        options=SIZED,
        asked=asked_variations,
        draw=draw_variations,
    ),
    "mix": Mode(
        needs="parts and part_weights",
        sources=("parts", "part_weights"),
        options=PRIOR + SIZED,
        asked=asked_mix,
        draw=draw_mix,
    ),
    "interpolate": Mode(
        needs="between",
        sources=("between",),
        options=PRIOR + SIZED,
        asked=asked_between,
        draw=draw_between,
    ),
    "image_to_image": Mode(
        needs="images, and prompts or prompts_file",
        sources=(*TEXTS, "images"),
        options=("strength", *ALL),
        asked=asked_images,
        draw=draw_images,
    ),
    "inpaint": Mode(
        needs="images, masks, and prompts or prompts_file",
        sources=(*TEXTS, "images", "masks"),
        options=ALL,
        asked=asked_inpainting,
        draw=draw_inpainting,
    ),
    "outpaint": Mode(
        needs="images, margins, and prompts or prompts_file",
        sources=(*TEXTS, "images", "margins"),
        options=ALL,
        asked=asked_outpainting,
        draw=draw_outpainting,
    ),
}

__all__ = ["MODES", "PictureRequest", "Mode"]
