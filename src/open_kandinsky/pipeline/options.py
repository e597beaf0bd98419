"""What the modes of a pipeline take: the options that all share, and the pictures that some edit.

`with_options` checks a mode's arguments before anything is drawn, and lets `help()` and editors show every option.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, TypedDict, get_type_hints

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import nearest
from open_kandinsky.data.transforms import as_rgb, to_pixels
from open_kandinsky.diffusion.samplers import named

MIN_SIDE, MAX_SIDE = 8, 4096  # pixels
SIDES = ("left", "right", "top", "bottom")
Number = int | float
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class Options(TypedDict, total=False):
    """An option that is None or left out has the value that the networks were loaded with."""

    size: int | tuple[int, int] | None  # pixels: a side, or (width, height); edited pictures keep their own
    negative_prompt: str  # what the prior is guided away from
    negative_decoder_prompt: str  # what the decoder is guided away from, by its embedding; "": no picture at all
    prior_steps: int | None
    prior_scale: Number | None
    prior_sampler: str | None
    steps: int | None
    scale: Number | None
    sampler: str | None
    seeds: int | Sequence[int] | None  # one for each picture, below 2^32; None: 0, 1, 2, ...
    callback: Callable[[Any], object] | None  # called with a `Step` after each call of a network; cancels by raising
    output_type: str  # "pil" images; "np" [h w 3] or "pt" [3 h w] in [0, 1]; "latent" [c h w]


DEFAULTS: dict[str, Any] = dict.fromkeys(get_type_hints(Options)) | {
    "negative_prompt": "",
    "negative_decoder_prompt": "",
    "output_type": "pil",
}
OF_PRIOR = {
    "negative_prompt": "negative_prompt",
    "prior_steps": "steps",
    "prior_scale": "scale",
    "prior_sampler": "sampler",
}
TEXT_OR_IMAGE = "a text or image"
PICTURES = {"image": "image", "mask": "mask", **dict.fromkeys(("parts", "a", "b"), TEXT_OR_IMAGE)}  # arguments
# What users of diffusers' Kandinsky pipelines type.
OF_DIFFUSERS = {
    "num_inference_steps": "steps=",
    "guidance_scale": "scale=",
    "prior_num_inference_steps": "prior_steps=",
    "prior_guidance_scale": "prior_scale=",
    "num_images_per_prompt": "several prompts: [prompt] * 4",
    "num_images": "n=",
    "height": "size=(width, height)",
    "width": "size=(width, height)",
    "generator": "seeds=[...], one for each picture: the same noise in any batch and on any device",
    "latents": "pipe.embedding_to_latent(..., x_T=...)",
    "callback_on_step_end": "callback=, which is called with a Step",
    "mask_image": "mask=",
}


def with_options(mode: Callable[..., Any]) -> Callable[..., Any]:
    """Check a mode's arguments before anything is drawn, and add the shared options to its signature.

    TypeError for an unknown option, naming the nearest one; ValueError for a value that cannot be. The mode gets its
    pictures upright and in RGB.
    """
    signature = inspect.signature(mode)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    types = get_type_hints(Options)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[name])
        for name, default in DEFAULTS.items()
    ]

    @functools.wraps(mode)
    def checked(*args: Any, **options: Any) -> Any:
        names = {p.name for p in parameters} | DEFAULTS.keys()
        if stray := [name for name in options if name not in names]:
            raise TypeError(f"{mode.__name__}() has no option {stray[0]!r}; {remedy(stray[0], names - {'self'})}")
        check({name: options[name] for name in DEFAULTS if name in options})
        bound = signature.bind(*args, **options)
        for name in PICTURES.keys() & bound.arguments.keys():
            bound.arguments[name] = pictures_in(bound.arguments[name], PICTURES[name])
        return mode(*bound.args, **bound.kwargs)

    checked.__signature__ = signature.replace(parameters=[*parameters, *shared])  # pyright: ignore[reportAttributeAccessIssue]
    return checked


def check(options: Mapping[str, Any]) -> None:
    """ValueError for a value that no mode can use."""
    for name, value in options.items():
        if value is not None and name in CHECKS:
            CHECKS[name](name, value)


def pictures_in(value: Any, name: str) -> Any:
    """A picture or a list of them, as RGB; where a text may stand for a picture, texts are left as they are."""
    if isinstance(value, list | tuple):
        return [pictures_in(one, name) for one in value]
    return value if isinstance(value, str) and name == TEXT_OR_IMAGE else picture(value, name)


def remedy(name: str, names: set[str]) -> str:
    """The option to use in place of an unknown one: by diffusers' name for it, or the nearest."""
    if name in OF_DIFFUSERS:
        return f"here it is {OF_DIFFUSERS[name]}"
    near = nearest(name, sorted(names))
    return f"did you mean {near!r}?" if near else f"there are {', '.join(DEFAULTS)}"


def sides(size: Any) -> tuple[int, int] | None:
    """A size as (width, height) in pixels; None stays None. ValueError for a value that is no size."""
    if size is None:
        return None
    both = (size, size) if isinstance(size, int) else size
    is_pair = isinstance(both, tuple | list) and len(both) == 2
    if not is_pair or any(not is_whole(side) or side < 1 for side in both):
        raise UserError(f"size={size}: a number of pixels or (width, height), each at least 1")
    return both[0], both[1]


def finite(name: str, value: Any) -> Number:
    """The value. ValueError unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise UserError(f"{name}={value}: a finite number")
    return value


def at_least_one(name: str, value: Any) -> int:
    """The value. ValueError unless it is a whole number from 1 on."""
    if not is_whole(value) or value < 1:
        raise UserError(f"{name}={value}: a whole number, at least 1")
    return value


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_seed_list(name: str, value: Any) -> None:
    if stray := [seed for seed in as_list(value) if not is_whole(seed)]:
        raise UserError(f"{name}: {stray[0]!r} is no whole number")


def check_output_type(name: str, value: Any) -> None:
    if value not in OUTPUT_TYPES:
        raise UserError(f"{name}={value!r}: one of {', '.join(OUTPUT_TYPES)}")


CHECKS: Mapping[str, Callable[[str, Any], object]] = {
    "size": lambda name, value: sides(value),
    "steps": at_least_one,
    "prior_steps": at_least_one,
    "scale": finite,
    "prior_scale": finite,
    "sampler": lambda name, value: named(value),
    "prior_sampler": lambda name, value: named(value),
    "seeds": check_seed_list,
    "output_type": check_output_type,
}


def seeds_for(n: int, seeds: int | Sequence[int] | None) -> Sequence[int]:
    """A seed for each of n pictures; of None 0, 1, 2, ... ValueError for another number of seeds."""
    each = as_list(range(n) if seeds is None else seeds)
    if len(each) != n:
        raise UserError(f"{len(each)} seeds for {n} images: seeds={seeds}; give a list with one for each")
    return each


def check_weights(parts: Sequence[Any], weights: Sequence[Any]) -> None:
    """ValueError unless there is a finite weight for each part, and one that is not 0."""
    if len(parts) != len(weights):
        raise UserError(f"mix: {len(parts)} texts and images but {len(weights)} weights; give one weight for each")
    numbers = all(isinstance(weight, int | float) for weight in weights)
    if not numbers or not any(weights) or not all(map(isfinite, weights)):
        raise UserError(f"mix: weights {list(weights)}: give finite numbers that are not all 0")


# ---- pictures


def as_list(value: Any) -> list[Any]:
    """A single text, picture or seed as a list of one."""
    return list(value) if isinstance(value, list | tuple | range) else [value]


def broadcast_lists(**values: Any) -> list[list[Any]]:
    """Lists of one length, in which a single prompt or picture is repeated. ValueError for other lengths."""
    lists = {name: as_list(value) for name, value in values.items()}
    counts = {name: len(items) for name, items in lists.items()}
    n = max(counts.values())
    if absent := [name for name, count in counts.items() if count == 0]:
        raise UserError(f"no {' and no '.join(absent)}: nothing to draw; give at least one")
    if set(counts.values()) - {1, n}:
        lengths = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise UserError(f"{lengths}: give one for all pictures, or one for each")
    return [items * n if len(items) == 1 else items for items in lists.values()]


def picture(image: Any, name: str = "image") -> Image.Image:
    """The picture upright and in RGB. ValueError for a value that is no PIL image."""
    if not isinstance(image, Image.Image):
        remedy = f"PIL.Image.open({str(image)!r})" if not hasattr(image, "shape") else "PIL.Image.fromarray(...)"
        raise UserError(f"{name}: a PIL image is wanted, and this is a {type(image).__name__}; give {remedy}")
    return as_rgb(image)


def check_sides(width: int, height: int, largest: int | None = MAX_SIDE) -> None:
    """ValueError for a side below 8 pixels, or above `largest`, beyond which no picture is drawn."""
    if min(width, height) < MIN_SIDE:
        raise UserError(f"a picture of {width}x{height} pixels: sides are at least {MIN_SIDE} pixels; enlarge it")
    if largest is not None and max(width, height) > largest:
        raise UserError(f"a picture of {width}x{height} pixels: sides are at most {largest} pixels; make it smaller")


def check_margins(left: int, right: int, top: int, bottom: int) -> None:
    """ValueError unless whole numbers of pixels, none negative and some above 0."""
    margins = dict(zip(SIDES, (left, right, top, bottom), strict=True))
    if stray := [f"{side}={n}" for side, n in margins.items() if not isinstance(n, int) or n < 0]:
        raise UserError(f"outpaint: {', '.join(stray)}: a margin is a whole number of pixels, 0 or more")
    if not any(margins.values()):
        raise UserError("outpaint: all margins are 0, nothing is to be painted: give left, right, top or bottom")


def outpaint_canvas(
    image: Image.Image, *, left: int, right: int, top: int, bottom: int
) -> tuple[Image.Image, Image.Image]:
    """The image with margins added, which repeat its edge, and a mask that is white on the margins.

    ValueError for margins that cannot be, and for a picture that would be too large.
    """
    check_margins(left, right, top, bottom)
    check_sides(image.width, image.height)
    check_sides(left + image.width + right, top + image.height + bottom)
    canvas = Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge"))
    mask = Image.new("L", canvas.size, 255)
    mask.paste(0, (left, top, left + image.width, top + image.height))
    return canvas, mask


def padded(images: Sequence[Image.Image], *, rows: int, columns: int) -> Float[Tensor, "b 3 {rows} {columns}"]:
    """Pixels in [-1, 1] of RGB pictures of one size, padded at the end by their last row and column."""
    pixels = torch.stack([to_pixels(image) for image in images])
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, columns - width, 0, rows - height), mode="replicate")


def indices_by_size(images: Sequence[Image.Image]) -> Iterator[list[int]]:
    """For each size, the indices of the images that have it: one batch holds one size."""
    for size in dict.fromkeys(image.size for image in images):
        yield [i for i, image in enumerate(images) if image.size == size]
