"""How a picture is cropped and resized before it is compared with others. Protocols differ in nothing so much.

Sets of pictures that are held against each other: drawn ones and real ones.
"""

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from PIL import Image

from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import lookup
from open_kandinsky.data.coco import Coco
from open_kandinsky.data.transforms import centre_square
from open_kandinsky.evaluation import samples
from open_kandinsky.evaluation.report import lines_sha256
from open_kandinsky.evaluation.samples import SampleBlock, Samples

Filter = Image.Resampling
Crop = Callable[[Image.Image, int | None, Filter], Image.Image]

FILTERS = {"bicubic": Filter.BICUBIC, "lanczos": Filter.LANCZOS, "bilinear": Filter.BILINEAR, "box": Filter.BOX}


def centre(image: Image.Image, size: int | None, filter: Filter) -> Image.Image:
    """The largest centred square, then resized. An odd pixel is left out on the right, or below.

    T2IBenchmark and NeMo's launcher.
    """
    return square(image.crop(centre_square(image)), size, filter)


def centre_rounded(image: Image.Image, size: int | None, filter: Filter) -> Image.Image:
    """The same as torchvision's center_crop has it: half a pixel is rounded to even: with 3 to spare it begins at 2.

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
        """Whether pictures of this size change their shape: count them, and say so in the report."""
        return self.crop == "stretch" and self.size is not None and width != height

    def identity(self) -> dict[str, Any]:
        """What features of prepared pictures depend on, for a hash."""
        return asdict(self)


def rgb(image: Image.Image) -> Image.Image:
    """As PIL converts. What it would clip is refused."""
    if image.mode.startswith(("I", "F")):
        raise UserError(f"a picture of mode {image.mode!r} has more than 8 bits a channel; save it with 8")
    return image.convert("RGB")


def square(image: Image.Image, size: int | None, filter: Filter) -> Image.Image:
    return image if size is None else image.resize((size, size), filter)


def cut_rounded(image: Image.Image, size: int) -> Image.Image:
    """The centred square of `size` at torchvision's place."""
    left, top = (round((side - size) / 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))


def through_jpeg(image: Image.Image, quality: int | None) -> Image.Image:
    """What is read again after it was written at that quality; the image itself for None."""
    if quality is None:
        return image
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")


REAL_BLOCK = 64


@dataclass(frozen=True)
class Generated:
    """What a system drew."""

    samples: Samples
    name: str = "generated"

    def of(self, n: int) -> list[SampleBlock]:
        return self.samples.of(n)

    def pictures(self, block: SampleBlock) -> list[Image.Image]:
        return self.samples.pictures(block)

    def captions(self, block: SampleBlock) -> list[str]:
        return [self.samples.prompts[row] for row in block.rows]

    def converted(self, block: SampleBlock) -> dict[str, int]:
        return {}

    def source(self, block: SampleBlock) -> str:
        about = samples.marker(self.samples.folder, block)
        return lines_sha256([about["tar_sha256"] if about else "", *self.captions(block)])


@dataclass(frozen=True)
class Real:
    """Pictures of COCO. A file's size tells when it has become another, without reading it."""

    ids: Sequence[int]
    texts: Sequence[str]
    coco: Coco

    @property
    def name(self) -> str:
        return f"real-{lines_sha256([str(i) for i in self.ids])[:8]}"

    def of(self, n: int) -> list[SampleBlock]:
        return [block for block in self.blocks if block.start < n]

    @cached_property
    def blocks(self) -> list[SampleBlock]:
        return samples.blocks(len(self.ids), REAL_BLOCK)

    def pictures(self, block: SampleBlock) -> list[Image.Image]:
        return [self.coco.picture(self.ids[row]) for row in block.rows]

    def captions(self, block: SampleBlock) -> list[str]:
        return [self.texts[row] for row in block.rows]

    def converted(self, block: SampleBlock) -> dict[str, int]:
        modes = [self.coco.converted.get(self.ids[row]) for row in block.rows]
        return dict(Counter(mode for mode in modes if mode is not None))

    def source(self, block: SampleBlock) -> str:
        each = [f"{self.ids[row]} {self.coco.size_of(self.ids[row])}" for row in block.rows]
        return lines_sha256([*each, *self.captions(block)])
