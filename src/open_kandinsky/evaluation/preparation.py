"""How a picture is cropped and resized before an evaluator sees it: what protocols differ in most."""

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import lookup
from open_kandinsky.data.transforms import centre_square

Filter = Image.Resampling
Crop = Callable[[Image.Image, int | None, Filter], Image.Image]

FILTERS = {"bicubic": Filter.BICUBIC, "lanczos": Filter.LANCZOS, "bilinear": Filter.BILINEAR, "box": Filter.BOX}


def centre(image: Image.Image, size: int | None, filter: Filter) -> Image.Image:
    """The largest centred square, then resized. An odd pixel is left out on the right, or below.

    T2IBenchmark and NeMo's launcher.
    """
    return square(image.crop(centre_square(image)), size, filter)


def centre_rounded(image: Image.Image, size: int | None, filter: Filter) -> Image.Image:
    """The same at torchvision's place, which rounds half a pixel to even: with 3 to spare the square begins at 2.

    GigaGAN.
    """
    return square(cut_rounded(image, min(image.size)), size, filter)


def short_side(image: Image.Image, size: int | None, filter: Filter) -> Image.Image:
    """The shorter side to `size`, the longer rounded down, then the centred square: torchvision's Resize, CenterCrop.

    Karlo.
    """
    size = min(image.size) if size is None else size
    width, height = (int(size * side / min(image.size)) for side in image.size)
    return cut_rounded(image.resize((width, height), filter), size)


def stretch(image: Image.Image, size: int | None, filter: Filter) -> Image.Image:
    """Nothing is cut off: what is not square changes its shape. MLPerf, and pytorch-fid where nothing was cropped."""
    return square(image, size, filter)


CROPS: Mapping[str, Crop] = {f.__name__: f for f in (centre, centre_rounded, short_side, stretch)}


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """PIL picture -> PIL picture in RGB, of `size` pixels a side, by PIL's own filters on uint8.

    `crop` is one of CROPS, `filter` one of FILTERS; `size` None leaves the size. `jpeg_before` and `jpeg_after` are the
    quality (1 to 100) of a round trip through JPEG, with PIL's other settings: before the crop, as T2IBenchmark stores
    what was generated, at 90; after the resize, as NeMo's launcher stores the reference, at 95, and MLPerf its, at 75,
    PIL's own.
    """

    crop: str
    filter: str
    size: int | None
    jpeg_before: int | None
    jpeg_after: int | None

    def __post_init__(self) -> None:
        lookup("crop", self.crop, CROPS)
        lookup("filter", self.filter, FILTERS)
        if self.size is not None and self.size < 1:
            raise UserError(f"size={self.size}: 1 pixel a side or more, or null to keep the size")
        for name in ("jpeg_before", "jpeg_after"):
            quality = getattr(self, name)
            if quality is not None and not 1 <= quality <= 100:
                raise UserError(f"{name}={quality}: a quality is 1 to 100, or null for no JPEG")

    def __call__(self, image: Image.Image) -> Image.Image:
        """Transparency is dropped, as by the tools that are followed. ValueError for pixels of more than 8 bits."""
        image = through_jpeg(rgb(image), self.jpeg_before)
        return through_jpeg(CROPS[self.crop](image, self.size, FILTERS[self.filter]), self.jpeg_after)

    def distorts(self, width: int, height: int) -> bool:
        """Whether pictures of this size change their aspect ratio, which a report must say."""
        return self.crop == "stretch" and self.size is not None and width != height

    def identity(self) -> dict[str, Any]:
        """Every setting, for a hash."""
        return asdict(self)


def rgb(image: Image.Image) -> Image.Image:
    """PIL's conversion to RGB. ValueError for modes whose values it would clip."""
    if image.mode.startswith(("I", "F")):
        raise UserError(f"a picture of mode {image.mode!r} has more than 8 bits a channel; save it with 8")
    return image.convert("RGB")


def square(image: Image.Image, size: int | None, filter: Filter) -> Image.Image:
    return image if size is None else image.resize((size, size), filter)


def cut_rounded(image: Image.Image, size: int) -> Image.Image:
    """The centred square of `size`, where torchvision's center_crop puts it."""
    left, top = (round((side - size) / 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))


def through_jpeg(image: Image.Image, quality: int | None) -> Image.Image:
    """The picture after one round trip through JPEG at that quality; itself for None."""
    if quality is None:
        return image
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")
