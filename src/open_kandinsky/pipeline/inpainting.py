"""What is known of a picture before it is drawn, and pictures before they are edited: sizes, margins, padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.transforms import as_rgb, to_pixels
from open_kandinsky.diffusion.denoise import Denoise, keep_known

MIN_SIDE, MAX_SIDE = 8, 4096  # pixels
SIDES = ("left", "right", "top", "bottom")


@dataclass(frozen=True)
class InpaintCondition:
    """Latents (MoVQ's scale) and where they stay: `keep` is 1 where known, 0 where to be painted."""

    z: Float[Tensor, "b c h w"]
    keep: Float[Tensor, "b 1 h w"]

    @classmethod
    def nothing(cls, like: Float[Tensor, "b c h w"]) -> "InpaintCondition":
        """All to be painted."""
        return cls(torch.zeros_like(like), torch.zeros_like(like[:, :1]))

    def known_by(self, network: Any) -> "KnownLatent":
        """ValueError for a U-Net that is neither a text-to-image nor an inpainting one, by its input's channels."""
        channels = network.conv_in.in_channels
        own = self.z.shape[1]
        if channels not in (own, 2 * own + 1):
            raise UserError(
                f"the decoder's U-Net reads {channels} channels: for latents of {own} it should be {own} "
                f"(text to image) or {2 * own + 1} (inpainting: x_t, known latent, mask)"
            )
        z = network.standardise(self.z)
        return KnownLatent(z, self.keep, torch.cat([z * self.keep, self.keep], dim=1)[:, : channels - own])

    def restore(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The known exactly as it was: some samplers leave a little noise on it, others rescale it."""
        return torch.lerp(z, self.z, self.keep)


@dataclass(frozen=True)
class KnownLatent:
    """The same in one network's scale. `extra` is [z where known, keep] for an inpainting U-Net, else no channel."""

    z: Float[Tensor, "b c h w"]
    keep: Float[Tensor, "b 1 h w"]
    extra: Float[Tensor, "b extra h w"]

    def beside(self, x_t: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c_in h w"]:
        """The network's input. `x_t` is a batch, or for guidance twice that."""
        return torch.cat([x_t, self.extra.repeat(len(x_t) // len(self.extra), 1, 1, 1)], dim=1)

    def blend(self, denoise: Denoise) -> Denoise:
        return keep_known(denoise, self.z, self.keep)


# ---- pictures before they are edited


def listed(given: Any) -> list[Any]:
    """One text or picture as a list of one."""
    return list(given) if isinstance(given, list | tuple | range) else [given]


def matched(**given: Any) -> list[list[Any]]:
    """As many of each thing, one of a thing serving for all; ValueError for numbers that do not go together."""
    lists = {name: listed(of) for name, of in given.items()}
    counts = {name: len(of) for name, of in lists.items()}
    n = max(counts.values())
    if absent := [name for name, count in counts.items() if count == 0]:
        raise UserError(f"no {' and no '.join(absent)}: nothing to draw; give at least one")
    if set(counts.values()) - {1, n}:
        found = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise UserError(f"{found}: give one for all pictures, or one for each")
    return [of * n if len(of) == 1 else of for of in lists.values()]


def picture(image: Any, name: str = "image") -> Image.Image:
    """Upright and RGB, as every reader of this package has it. ValueError for what is no PIL image."""
    if not isinstance(image, Image.Image):
        remedy = f"PIL.Image.open({str(image)!r})" if not hasattr(image, "shape") else "PIL.Image.fromarray(...)"
        raise UserError(f"{name}: a PIL image is wanted, and this is a {type(image).__name__}; give {remedy}")
    return as_rgb(image)


def check_sides(width: int, height: int, largest: int | None = MAX_SIDE) -> None:
    """ValueError for a side that is too small to show anything, or too large to be drawn at its own size."""
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


def enlarged(image: Image.Image, *, left: int, right: int, top: int, bottom: int) -> tuple[Image.Image, Image.Image]:
    """The image with so many pixels more on each side, its edge repeated, and the mask that is white on them.

    ValueError for margins that are none, and for a picture that would be too large.
    """
    check_margins(left, right, top, bottom)
    check_sides(image.width, image.height)
    check_sides(left + image.width + right, top + image.height + bottom)
    pixels = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge")
    canvas = Image.fromarray(pixels)
    mask = Image.new("L", canvas.size, 255)
    mask.paste(0, (left, top, left + image.width, top + image.height))
    return canvas, mask


def padded(images: Sequence[Image.Image], *, rows: int, columns: int) -> Float[Tensor, "b 3 {rows} {columns}"]:
    """RGB pictures of one size in [-1, 1], their last row and column repeated."""
    pixels = torch.stack([to_pixels(image) for image in images])
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, columns - width, 0, rows - height), mode="replicate")


def by_size(images: Sequence[Image.Image]) -> Iterator[list[int]]:
    """The indices of the images of each size: what one batch can hold."""
    sizes = [image.size for image in images]
    for size in dict.fromkeys(sizes):
        yield [i for i, own in enumerate(sizes) if own == size]
