"""Options that the modes of a pipeline share: their meanings, their checks, and how `help()` shows them."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, TypedDict, get_type_hints

from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import nearest
from open_kandinsky.diffusion.samplers import named
from open_kandinsky.pipeline.inpainting import listed, picture

Number = int | float
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class Options(TypedDict, total=False):
    """What is None or left out is as the networks were set up."""

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
    callback: Callable[[Any], object] | None  # told a `Step` after each call of prior and decoder; may raise to cancel
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
    "callback_on_step_end": "callback=, which is told a Step",
    "mask_image": "mask=",
}


def with_options(mode: Callable[..., Any]) -> Callable[..., Any]:
    """A mode whose arguments are checked before anything is drawn, and each shown by `help()` and in editors.

    TypeError for an option that there is not, with the nearest one, as Python's own but for the remedy. ValueError for
    a value that cannot be. Pictures arrive upright and in RGB.
    """
    signature = inspect.signature(mode)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    types = get_type_hints(Options)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[name])
        for name, default in DEFAULTS.items()
    ]

    @functools.wraps(mode)
    def checked(*args: Any, **options: Any) -> Any:
        known = {p.name for p in own} | DEFAULTS.keys()
        if stray := [name for name in options if name not in known]:
            raise TypeError(f"{mode.__name__}() has no option {stray[0]!r}; {remedy(stray[0], known - {'self'})}")
        check({name: options[name] for name in DEFAULTS if name in options})
        bound = signature.bind(*args, **options)
        for name in PICTURES.keys() & bound.arguments.keys():
            bound.arguments[name] = pictures_in(bound.arguments[name], PICTURES[name])
        return mode(*bound.args, **bound.kwargs)

    checked.__signature__ = signature.replace(parameters=[*own, *shared])  # pyright: ignore[reportAttributeAccessIssue]
    return checked


def check(options: Mapping[str, Any]) -> None:
    """ValueError for a value that cannot be, whatever is to be drawn."""
    for name, value in options.items():
        if value is not None and name in CHECKS:
            CHECKS[name](name, value)


def pictures_in(given: Any, name: str) -> Any:
    """One thing or a list of things: texts as they are, all else as RGB pictures."""
    if isinstance(given, list | tuple):
        return [pictures_in(one, name) for one in given]
    return given if isinstance(given, str) and name == TEXT_OR_IMAGE else picture(given, name)


def remedy(name: str, known: set[str]) -> str:
    if name in OF_DIFFUSERS:
        return f"here it is {OF_DIFFUSERS[name]}"
    near = nearest(name, sorted(known))
    return f"did you mean {near!r}?" if near else f"there are {', '.join(DEFAULTS)}"


def prior_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The prior's options by its own names for them."""
    return {own: options[name] for name, own in OF_PRIOR.items() if options.get(name) is not None}


def decoder_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("size", "steps", "scale", "sampler") if name in options}


def sides(size: Any) -> tuple[int, int] | None:
    """(width, height) in pixels. ValueError for what is no size."""
    if size is None:
        return None
    both = (size, size) if isinstance(size, int) else size
    is_pair = isinstance(both, tuple | list) and len(both) == 2
    if not is_pair or any(not is_whole(side) or side < 1 for side in both):
        raise UserError(f"size={size}: a number of pixels or (width, height), each at least 1")
    return both[0], both[1]


def finite(name: str, value: Any) -> Number:
    """ValueError for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise UserError(f"{name}={value}: a finite number")
    return value


def at_least_one(name: str, value: Any) -> int:
    """ValueError for what is no whole number from 1 on."""
    if not is_whole(value) or value < 1:
        raise UserError(f"{name}={value}: a whole number, at least 1")
    return value


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_seed_list(name: str, value: Any) -> None:
    if stray := [seed for seed in listed(value) if not is_whole(seed)]:
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
    """One for each picture; None: 0, 1, 2, ... ValueError for another number of them."""
    if seeds is None:
        return range(n)
    if len(listed(seeds)) != n:
        raise UserError(f"{len(listed(seeds))} seeds for {n} images: seeds={seeds}; give a list with one for each")
    return listed(seeds)


def check_weights(parts: Sequence[Any], weights: Sequence[Any]) -> None:
    """ValueError unless there is a finite weight for each part, and one that is not 0."""
    if len(parts) != len(weights):
        raise UserError(f"mix: {len(parts)} texts and images but {len(weights)} weights; give one weight for each")
    numbers = all(isinstance(weight, int | float) for weight in weights)
    if not numbers or not any(weights) or not all(map(isfinite, weights)):
        raise UserError(f"mix: weights {list(weights)}: give finite numbers that are not all 0")
