"""A contact sheet: captioned pictures side by side, as one PNG."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont, ImageOps

from open_kandinsky.core.errors import UserError

SHOWN = 96  # pixels: what smaller pictures are enlarged to
GAP = 16  # pixels between cells
FONTS = Path(mpl.get_data_path()) / "fonts" / "ttf"
FONT, BOLD = (ImageFont.truetype(FONTS / name, 12) for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"))
LINE = 15  # pixels: the height of a caption's line
MARK = 17  # pixels: what a mark takes of its line
INK, EDGE, PAPER, RIGHT, WRONG = "#26292e", "#d9dce0", "#ffffff", "#1a8a4a", "#cc3333"


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str], columns: int, marks: Sequence[bool] | None = None
) -> bytes:
    """Each picture above its caption, with a tick or a cross where `marks` are given, as PNG.

    Pictures below 96 px are enlarged by a whole factor without smoothing. UserError where the numbers of pictures,
    captions and marks differ, or are 0.
    """
    ticks = [None] * len(images) if marks is None else marks
    if not len(images) == len(captions) == len(ticks) or not images:
        raise UserError(f"{len(images)} pictures, {len(captions)} captions and {len(ticks)} marks make no sheet")
    shown = [enlarged(image) for image in images]
    width = max(image.width for image in shown) + GAP
    cells = [cell(*parts, width=width) for parts in zip(shown, captions, ticks, strict=True)]
    data = io.BytesIO()
    in_rows(cells, columns).save(data, format="png", optimize=True)
    return data.getvalue()


def enlarged(image: Image.Image) -> Image.Image:
    """A picture as RGB, enlarged by the whole factor that brings it nearest to 96 px; large ones keep their size."""
    factor = max(1, round(SHOWN / max(image.size)))
    return image.convert("RGB").resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


def cell(image: Image.Image, caption: str, mark: bool | None, *, width: int) -> Image.Image:
    """One picture and its caption, wrapped to `width`; the mark stands where the caption starts."""
    indent = 0 if mark is None else MARK
    lines = list(wrapped(caption, width, indent))
    canvas = Image.new("RGB", (width, image.height + 8 + LINE * len(lines)), PAPER)
    canvas.paste(ImageOps.expand(image, 1, EDGE), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, line in enumerate(lines):
        draw.text((indent if i == 0 else 0, image.height + 6 + LINE * i), line, font=FONT, fill=INK)
    if mark is not None:
        draw.text((1, image.height + 6), "✓" if mark else "✗", font=BOLD, fill=RIGHT if mark else WRONG)
    return canvas


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
    """A word in pieces at most `width` pixels wide: a path has no spaces to break it at."""
    while FONT.getlength(word) > width:
        n = max(1, next(n for n in range(len(word)) if FONT.getlength(word[: n + 1]) > width))
        yield word[:n]
        word = word[n:]
    yield word


def in_rows(cells: Sequence[Image.Image], columns: int) -> Image.Image:
    """Cells of one width in rows; a row is as high as its highest cell."""
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(part.height for part in row) + GAP for row in rows]
    width = (cells[0].width + GAP) * min(columns, len(cells))
    canvas = Image.new("RGB", (width + GAP, sum(heights) + GAP), PAPER)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for i, part in enumerate(row):
            canvas.paste(part, (GAP + i * (part.width + GAP), top))
        top += height
    return canvas
