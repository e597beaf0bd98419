"""Modes that redraw pictures, at their own size."""

from collections.abc import Iterator, Sequence

from PIL import Image

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.masks import check_mask
from open_kandinsky.data.prompts import opened
from open_kandinsky.modes.request import Asked, Options, Request, each, editable, prompts, seeds, strings, texts_of
from open_kandinsky.pipeline import Pipeline
from open_kandinsky.pipeline.inpainting import SIDES, check_margins, check_sides, matched
from open_kandinsky.pipeline.sampling import check_strength


def asked_images(request: Request) -> list[Asked]:
    if request["strength"] is not None:
        check_strength(request["strength"])
    return each(request, [(prompt, own, {"image": path}) for prompt, own, path in together(request, "images")])


def draw_images(pipe: Pipeline, request: Request, asked: Sequence[Asked], options: Options) -> list[Image.Image]:
    return pipe.image_to_image(prompts(asked), files(asked, "image"), seeds=seeds(asked), **options)


def asked_inpainting(request: Request) -> list[Asked]:
    items = list(together(request, "images", "masks"))
    for _, _, image, mask in items:
        check_mask_file(mask, image)
    return each(request, [(prompt, own, {"image": image, "mask": mask}) for prompt, own, image, mask in items])


def draw_inpainting(pipe: Pipeline, request: Request, asked: Sequence[Asked], options: Options) -> list[Image.Image]:
    images, masks = files(asked, "image"), files(asked, "mask")
    return pipe.inpaint(prompts(asked), images, masks, seeds=seeds(asked), **options)


def asked_outpainting(request: Request) -> list[Asked]:
    items = list(together(request, "images"))
    margins = request["margins"]
    if items and (not isinstance(margins, list) or len(margins) != len(SIDES)):
        raise UserError(f"margins={margins}: [{', '.join(SIDES)}], four whole numbers of pixels")
    for _, _, path in items:
        check_canvas(path, margins)
    return each(request, [(prompt, own, {"image": path, "margins": margins}) for prompt, own, path in items])


def draw_outpainting(pipe: Pipeline, request: Request, asked: Sequence[Asked], options: Options) -> list[Image.Image]:
    margins = dict(zip(SIDES, request["margins"], strict=True))
    return pipe.outpaint(prompts(asked), files(asked, "image"), seeds=seeds(asked), **margins, **options)


def together(request: Request, *names: str) -> Iterator[tuple]:
    """Prompt, its own seed, and a file of each name, one of each serving for all. Nothing where any is not given."""
    texts, lists = texts_of(request), {name: strings(request[name]) for name in names}
    if not texts or not lists[names[0]]:
        return
    for (prompt, own), *paths in zip(*matched(prompts=texts, **lists), strict=True):
        editable(paths[0])
        yield prompt, own, *paths


def files(asked: Sequence[Asked], name: str) -> list[Image.Image]:
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
