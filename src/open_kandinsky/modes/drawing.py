"""Modes that draw new pictures: from texts, from pictures' embeddings, and from what is between."""

from collections.abc import Sequence
from itertools import groupby

from PIL import Image

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.prompts import is_picture, opened, part_of
from open_kandinsky.modes.request import (
    Asked,
    Options,
    Request,
    each,
    looked_at,
    prompts,
    seeded,
    seeds,
    strings,
    texts_of,
)
from open_kandinsky.pipeline import Pipeline
from open_kandinsky.pipeline.pipeline import check_weights


def asked_texts(request: Request) -> list[Asked]:
    return each(request, [(prompt, own, {}) for prompt, own in texts_of(request)])


def draw_texts(pipe: Pipeline, request: Request, asked: Sequence[Asked], options: Options) -> list[Image.Image]:
    return pipe.text_to_image(prompts(asked), seeds=seeds(asked), **options)


def asked_variations(request: Request) -> list[Asked]:
    paths = strings(request["images"])
    for path in paths:
        looked_at(path)
    return each(request, [(path, None, {}) for path in paths])


def draw_variations(pipe: Pipeline, request: Request, asked: Sequence[Asked], options: Options) -> list[Image.Image]:
    made = []
    for path, group in groupby(asked, key=lambda one: one.prompt):
        own = [one.seed for one in group]
        made += pipe.variations(opened(path), n=len(own), seeds=own, **options)
    return made


def asked_mix(request: Request) -> list[Asked]:
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


def draw_mix(pipe: Pipeline, request: Request, asked: Sequence[Asked], options: Options) -> list[Image.Image]:
    parts = [part_of(part) for part in strings(request["parts"])]
    return pipe.mix(parts, request["part_weights"], n=len(asked), seeds=seeds(asked), **options)


def asked_between(request: Request) -> list[Asked]:
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
    return [Asked(on_the_way(a, b, k / (n - 1)), seed, {"at": k / (n - 1)}) for k in range(n)]


def on_the_way(a: str, b: str, at: float) -> str:
    """What a picture of an interpolation shows."""
    return {0.0: a, 1.0: b}.get(at, f"{at:.0%} of the way from {a} to {b}")


def draw_between(pipe: Pipeline, request: Request, asked: Sequence[Asked], options: Options) -> list[Image.Image]:
    a, b = (part_of(end) for end in strings(request["between"]))
    return pipe.between(a, b, [one.made_from["at"] for one in asked], seeds=seeds(asked), **options)
