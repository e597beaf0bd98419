"""Figures of a report: a contact sheet of captioned pictures (PNG), curves and bars (SVG)."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont, ImageOps

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError

Number = float | int
Series = Mapping[str, tuple[Sequence[Number], Sequence[Number]]]  # name -> (steps, values)

SHOWN = 96  # pixels: what smaller pictures are enlarged to
GAP = 16
FONTS = Path(mpl.get_data_path()) / "fonts" / "ttf"
FONT, BOLD = (ImageFont.truetype(FONTS / name, 12) for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"))
LINE = 15
MARK = 17  # pixels: what a mark takes of its line
INK, EDGE, PAPER, RIGHT, WRONG = "#26292e", "#d9dce0", "#ffffff", "#1a8a4a", "#cc3333"

INHERITED = "#010203"  # drawn in this, a line takes the colour of the text around the figure, light or dark
COLOURS = ("#4c8dd6", "#e08a3c", "#4fa96b", "#d0605e", "#9a7fd1")


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


def curves(series: Series, title: str) -> str:
    """Values over steps as an SVG element: each series faint, and its running mean over a fiftieth of it on top.

    The axis is logarithmic where positive values span a factor above 30. Colours follow the text around the figure.
    """
    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    axes = figure.subplots()
    for (name, (steps, values)), colour in zip(series.items(), COLOURS * len(series), strict=False):
        steps, values = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
        mean = running_mean(values, max(1, len(values) // 50))
        axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
        axes.plot(steps, mean, color=colour, linewidth=1.8, label=name)
    if spans_decades([value for _, values in series.values() for value in values]):
        axes.set_yscale("log")
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.grid(alpha=0.1, color=INHERITED)
    if len(series) > 1:
        axes.legend(frameon=False, labelcolor=INHERITED)
    return svg(figure)


def tradeoff(lines: Mapping[str, Sequence[tuple[str, Number, Number]]], *, x: str, y: str) -> str:
    """Points (label, x, y), joined in their order, as an SVG element: a line for each name."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for (name, points), colour in zip(lines.items(), COLOURS * len(lines), strict=False):
        labels, *both = zip(*points, strict=True)
        axes.plot(*both, color=colour, marker="o", markersize=4, linewidth=1.6, label=name)
        for label, *at in zip(labels, *both, strict=True):
            axes.annotate(label, (at[0], at[1]), xytext=(5, 4), textcoords="offset points", fontsize=8, color=INHERITED)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.1, color=INHERITED)
    axes.legend(frameon=False, labelcolor=INHERITED)
    return svg(figure)


def timeline(seconds: Mapping[str, Number]) -> str:
    """How long each part took, in order, as an SVG element of horizontal bars."""
    figure = Figure(figsize=(8.4, 0.5 + 0.3 * len(seconds)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(seconds), list(seconds.values()), height=0.62, color=COLOURS[0])
    axes.bar_label(bars, labels=[duration(value) for value in seconds.values()], padding=5, color=INHERITED)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    return svg(figure)


def duration(seconds: Number) -> str:
    """As a person says it: 0.4 s, 42 s, 4 min 16 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def running_mean(values: Float[np.ndarray, "n"], width: int) -> Float[np.ndarray, "n"]:
    """Centred, over at most `width` values, fewer at the ends."""
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same")[: len(values)] / np.convolve(np.ones(len(values)), kernel, "same")


def spans_decades(values: Sequence[Number]) -> bool:
    finite = [value for value in values if np.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > 30 * min(finite)


def svg(figure: Figure) -> str:
    """The figure as an SVG element, without a prologue, in the colour and at the width of what is around it."""
    for axes in figure.axes:
        _ink(axes)
    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "open-kandinsky"}):
        absent = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=absent)
    element = re.sub(r'<g id="[^"]*"', "<g", text.getvalue()[text.getvalue().index("<svg") :])
    return element.replace(INHERITED, "currentColor")


def _ink(axes: Axes) -> None:
    """Frame and words in the inherited colour, no frame at the top and on the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=INHERITED, alpha=0.4)
    axes.tick_params(which="both", color=INHERITED, labelcolor=INHERITED, labelsize=9)
    axes.xaxis.label.set_color(INHERITED)
    axes.yaxis.label.set_color(INHERITED)
    axes.title.set(color=INHERITED, size=11)
