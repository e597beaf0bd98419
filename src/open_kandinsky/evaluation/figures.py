"""The reports' figures as SVG elements for an HTML page: curves over steps, a trade-off, and a bar for each duration.

Words, axes and grids take the colour of the text around the figure, light or dark.
"""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

Number = float | int
Series = Mapping[str, tuple[Sequence[Number], Sequence[Number]]]  # name -> (steps, values)

INHERITED = "#010203"  # stands for the surrounding text's colour, and is replaced by CSS's currentColor in the end
COLOURS = ("#4c8dd6", "#e08a3c", "#4fa96b", "#d0605e", "#9a7fd1")


def curves(series: Series, title: str) -> str:
    """A plot of values over steps: each series faint, and on it its running mean over a fiftieth of its length.

    The axis is logarithmic where positive values span a factor above 30.
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
    axes.set(title=title, xlabel="step")
    axes.grid(alpha=0.1, color=INHERITED)
    if len(series) > 1:
        axes.legend(frameon=False, labelcolor=INHERITED)
    return svg(figure)


def tradeoff(lines: Mapping[str, Sequence[tuple[str, Number, Number]]], *, x: str, y: str) -> str:
    """A plot with a line for each name through its points (label, x, y), in their order; `x`, `y` name the axes."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for (name, points), colour in zip(lines.items(), COLOURS * len(lines), strict=False):
        axes.plot(*zip(*(at for _, *at in points), strict=True), color=colour, marker="o", ms=4, lw=1.6, label=name)
        for label, *at in points:
            axes.annotate(label, (at[0], at[1]), xytext=(5, 4), textcoords="offset points", fontsize=8, color=INHERITED)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.1, color=INHERITED)
    axes.legend(frameon=False, labelcolor=INHERITED)
    return svg(figure)


def timeline(seconds: Mapping[str, Number]) -> str:
    """A horizontal bar for each part, as long as the part took, in order."""
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
    """A time as text: 0.4 s, 42 s, 4 min 16 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def running_mean(values: Float[np.ndarray, "n"], width: int) -> Float[np.ndarray, "n"]:
    """The mean of the `width` values around each value, of fewer at the ends."""
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same")[: len(values)] / np.convolve(np.ones(len(values)), kernel, "same")


def spans_decades(values: Sequence[Number]) -> bool:
    """Whether all finite values are positive, and the largest is above 30 times the smallest."""
    finite = [value for value in values if np.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > 30 * min(finite)


def svg(figure: Figure) -> str:
    """The figure as an SVG element, without a prologue; its texts are escaped by matplotlib.

    Words and axes take the inherited colour; the frame is left out at the top and on the right.
    """
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set(color=INHERITED, alpha=0.4)
        axes.tick_params(which="both", color=INHERITED, labelcolor=INHERITED, labelsize=9)
        axes.xaxis.label.set_color(INHERITED)
        axes.yaxis.label.set_color(INHERITED)
        axes.title.set(color=INHERITED, size=11)
    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "open-kandinsky"}):
        absent = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=absent)
    element = re.sub(r'<g id="[^"]*"', "<g", text.getvalue()[text.getvalue().index("<svg") :])
    return element.replace(INHERITED, "currentColor")
