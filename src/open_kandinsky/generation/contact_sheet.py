"""A contact sheet: captioned pictures on one page, as a PNG."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont, ImageOps

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError

SHOWN = 96  # pixels: what smaller pictures are enlarged to
GAP = 16
FONTS = Path(mpl.get_data_path()) / "fonts" / "ttf"
FONT, BOLD = (ImageFont.truetype(FONTS / name, 12) for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"))
LINE = 15
MARK = 17  # pixels: what a mark takes of its line
INK, EDGE, PAPER, RIGHT, WRONG = "#26292e", "#d9dce0", "#ffffff", "#1a8a4a", "#cc3333"


def samples_png(
    path: Path,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    columns: int,
    marks: Sequence[bool] | None = None,
) -> None:
    """Write a contact sheet, as `contact_sheet` makes it."""
    data = io.BytesIO()
    contact_sheet(images, captions, columns, marks).save(data, format="png", optimize=True)
    files.write(path, data.getvalue())


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str], columns: int, marks: Sequence[bool] | None = None
) -> Image.Image:
    """Each picture above its caption, with a tick or a cross where `marks` are given.

    Pictures below 96 px are enlarged by a whole factor without smoothing. ValueError where the numbers differ.
    """
    every = marks if marks is not None else [None] * len(images)
    if not len(images) == len(captions) == len(every) or not images:
        raise UserError(f"{len(images)} pictures, {len(captions)} captions and {len(every)} marks make no sheet")
    shown = [enlarged(image) for image in images]
    width = max(image.width for image in shown) + GAP
    return sheet([cell(*parts, width=width) for parts in zip(shown, captions, every, strict=True)], columns)


def enlarged(image: Image.Image) -> Image.Image:
    """By the whole factor that comes nearest to 96 px; large pictures are left alone."""
    factor = max(1, round(SHOWN / max(image.size)))
    return image.convert("RGB").resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


def cell(image: Image.Image, caption: str, mark: bool | None, *, width: int) -> Image.Image:
    """One picture and its caption, wrapped to `width`; the mark stands where the caption starts."""
    indent = 0 if mark is None else MARK
    lines = list(wrapped(caption, width, indent))
    made = Image.new("RGB", (width, image.height + 8 + LINE * len(lines)), PAPER)
    made.paste(ImageOps.expand(image, 1, EDGE), (0, 0))
    draw = ImageDraw.Draw(made)
    for i, line in enumerate(lines):
        draw.text((indent if i == 0 else 0, image.height + 6 + LINE * i), line, font=FONT, fill=INK)
    if mark is not None:
        draw.text((1, image.height + 6), "✓" if mark else "✗", font=BOLD, fill=RIGHT if mark else WRONG)
    return made


def wrapped(text: str, width: int, indent: int) -> Iterator[str]:
    """The lines of a text at most `width` pixels wide, the first less `indent`; a word that is wider is broken."""
    line = ""
    for word in (piece for whole in text.split() for piece in broken(whole, width - indent)):
        longer = f"{line} {word}" if line else word
        if line and indent + FONT.getlength(longer) > width:
            yield line
            longer, indent = word, 0
        line = longer
    yield line


def broken(word: str, width: int) -> Iterator[str]:
    """A word as it is, or what of it goes into a line each: a path has no spaces."""
    while FONT.getlength(word) > width:
        n = max(1, next(n for n in range(len(word)) if FONT.getlength(word[: n + 1]) > width))
        yield word[:n]
        word = word[n:]
    yield word


def sheet(cells: Sequence[Image.Image], columns: int) -> Image.Image:
    """Cells of one width in rows; a row is as high as its highest cell."""
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(part.height for part in row) + GAP for row in rows]
    width = (cells[0].width + GAP) * min(columns, len(cells))
    made = Image.new("RGB", (width + GAP, sum(heights) + GAP), PAPER)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for i, part in enumerate(row):
            made.paste(part, (GAP + i * (part.width + GAP), top))
        top += height
    return made
