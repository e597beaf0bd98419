"""Bytes to RGB images, images to tensors, and back. Pixels are float in [-1, 1] unless a name says otherwise."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image, ImageColor, ImageFile
from torch import Tensor

from open_kandinsky.core.errors import UserError

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
MIN_SIDE = 2
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # no format whose decoder starts another program
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS, background: str = "white") -> Image.Image:
    """The upright RGB image in an encoded file: EXIF orientation applied, transparency composited on `background`.

    Raises ValueError, saying what was found, for bytes that are no whole image, for more than `max_pixels` pixels
    (checked before anything is decoded) and for sides under 2 pixels.
    """
    if not data:
        raise UserError("the image file is empty (0 bytes)")
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "PIL would hand out half-grey images"
    with header_of(data, max_pixels) as image:
        return as_rgb(image, background)


@contextmanager
def header_of(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The image, not decoded yet, in a block whose errors become UserErrors. Refuses what is too large or too thin."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > max_pixels:
                raise UserError(f"{width}x{height} is {width * height} pixels, more than the limit of {max_pixels}")
            if min(width, height) < MIN_SIDE:
                raise UserError(f"{width}x{height}: a side is under {MIN_SIDE} pixels")
            yield image
    except Exception as error:  # on hostile bytes PIL's decoders raise nearly anything
        raise UserError(f"not a usable image ({len(data)} bytes): {error}") from error


def upright(image: Image.Image) -> Image.Image:
    """Rotated as its EXIF tag says; the result has no tags, so that it is not rotated twice.

    ImageOps.exif_transpose would rewrite the tags, and fail on odd ones.
    """
    turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    image.load()
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = {name: value for name, value in image.info.items() if name == "transparency"}
    return turned


def as_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """An opened picture, upright and RGB, as `open_image` returns it."""
    return to_rgb(upright(image), background)


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Any PIL mode to RGB, transparency on a colour that PIL knows by name; an image that is RGB is not copied."""
    if image.mode.startswith("I"):
        return grey_from_16_bit(image).convert("RGB")
    if image.mode == "F":
        raise UserError("floating-point pixels have no known range: save the image with 8 or 16 bits")
    return composited(image, background) if image.has_transparency_data else without_alpha(image)


def without_alpha(image: Image.Image) -> Image.Image:
    """RGB, ignoring transparency. PIL's convert would copy an RGB image too."""
    return image if image.mode == "RGB" else image.convert("RGB")


def grey_from_16_bit(image: Image.Image) -> Image.Image:
    """PIL's own conversion clips or truncates; this rounds, 65535 to 255."""
    values = np.asarray(image).astype(np.float64)
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"integer pixels from {values.min():.0f} to {values.max():.0f}, expected 0 to 65535")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def composited(image: Image.Image, background: str) -> Image.Image:
    """A picture with transparency before a colour."""
    canvas = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")


def check_background(name: str) -> str:
    """The name of a colour, as PIL knows it. UserError for any other."""
    try:
        ImageColor.getrgb(name)
    except ValueError as error:
        raise UserError(f"background={name!r}: no colour; give a name, as white or lightblue, or #rrggbb") from error
    return name


def image_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of the upright image, from its header alone. Raises ValueError as `open_image` does."""
    with header_of(data, max_pixels) as image:
        # of a PNG without EXIF in its header, PIL would decode all to look for it behind the pixels
        has_exif = image.format != "PNG" or "exif" in image.info
        sideways = has_exif and image.getexif().get(ORIENTATION, 1) in SIDEWAYS
        return (image.height, image.width) if sideways else image.size


def centre_square(image: Image.Image) -> tuple[int, int, int, int]:
    """The largest centred square: left, top, right, bottom."""
    return centre_box(image, 1, 1)


def centre_box(image: Image.Image, height: int, width: int) -> tuple[int, int, int, int]:
    """The largest centred box with the aspect of `width` to `height`: left, top, right, bottom."""
    box_width = min(image.width, max(1, round(image.height * width / height)))
    box_height = min(image.height, max(1, round(image.width * height / width)))
    left, top = (image.width - box_width) // 2, (image.height - box_height) // 2
    return left, top, left + box_width, top + box_height


def to_tensor(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """The image's own numbers, [0, 255]."""
    bands = bytearray().join(band.tobytes() for band in without_alpha(image).split())
    return rearrange(torch.frombuffer(bands, dtype=torch.uint8), "(c h w) -> c h w", c=3, h=image.height)


def to_pixels(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """[-1, 1], at the image's own size."""
    return to_tensor(image).float().div_(127.5).sub_(1)


def to_uint8(pixels: Float[Tensor, "*b 3 h w"]) -> UInt8[Tensor, "*b h w 3"]:
    """[-1, 1] to [0, 255], rounded and clamped, channels last: what PIL and image writers take."""
    levels = ((pixels.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(levels, "... c h w -> ... h w c")


def to_images(pixels: Float[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """[-1, 1] to PIL images."""
    return [Image.fromarray(levels) for levels in to_uint8(pixels).cpu().numpy()]


def to_output(pixels: Float[Tensor, "b 3 h w"], kind: str) -> list[Any]:
    """[-1, 1] to PIL images ("pil"), or to arrays [h w 3] ("np") or tensors [3 h w] ("pt") in [0, 1]."""
    if kind == "pil":
        return to_images(pixels)
    unit = (pixels.detach().float() + 1) / 2
    return list(unit) if kind == "pt" else list(rearrange(unit, "b c h w -> b h w c").cpu().numpy())


class Pixels:
    """Centre square, bicubic with antialiasing, [-1, 1]."""

    def __init__(self, *, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 {self.size} {self.size}"]:
        return covering(image, self.size, self.size)


def covering(image: Image.Image, height: int, width: int) -> Float[Tensor, "3 {height} {width}"]:
    """The centre of an image in a given shape: cropped, then resized, bicubic with antialiasing, [-1, 1]."""
    box, image = centre_box(image, height, width), without_alpha(image)
    crop = image if box == (0, 0, *image.size) else image.crop(box)  # resize(box=...) reads pixels outside
    return to_pixels(crop.resize((width, height), Image.Resampling.BICUBIC))


class ClipPixels:
    """CLIP's preprocessing: shorter side to `size`, bicubic, centre crop, CLIP's mean and standard deviation."""

    def __init__(self, *, size: int) -> None:
        from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD  # seconds to import

        self.size = size
        self.mean = rearrange(torch.tensor(OPENAI_DATASET_MEAN), "c -> c 1 1")
        self.std = rearrange(torch.tensor(OPENAI_DATASET_STD), "c -> c 1 1")

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 {self.size} {self.size}"]:
        short = min(image.size)
        width, height = (int(self.size * side / short) for side in image.size)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        whole = without_alpha(image).resize((width, height), Image.Resampling.BICUBIC)
        crop = whole.crop((left, top, left + self.size, top + self.size))
        return to_tensor(crop).float().div_(255).sub_(self.mean).div_(self.std)
