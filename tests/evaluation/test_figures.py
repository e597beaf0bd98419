"""Contact sheets hold every picture; curves and bars are SVG elements that fit into a page."""

import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from open_kandinsky.evaluation import figures
from open_kandinsky.generation import contact_sheet

RED = (250, 0, 10)


def sheet(n, columns, size=32, **marks):
    captions = [f"picture {i}, which has a caption of more than one line" for i in range(n)]
    png = contact_sheet.contact_sheet([Image.new("RGB", (size, size), RED)] * n, captions, columns, **marks)
    return np.asarray(Image.open(io.BytesIO(png), formats=["PNG"])).astype(int)


def pictures(pixels):
    """The top left corner and the size of every red area, row by row."""
    labels, _ = ndimage.label((pixels == RED).all(-1))
    return [(y.start, x.start, y.stop - y.start, x.stop - x.start) for y, x in ndimage.find_objects(labels)]


@pytest.mark.parametrize(("n", "columns", "rows"), [(1, 8, 1), (5, 2, 3), (6, 3, 2)])
def test_a_sheet_has_a_cell_for_each_picture(n, columns, rows):
    found = pictures(sheet(n, columns))
    assert len(found) == n
    assert len({top for top, *_ in found}) == rows and len({left for _, left, *_ in found}) == min(n, columns)


@pytest.mark.parametrize(("size", "shown"), [(32, 96), (40, 80), (64, 128), (200, 200)])
def test_small_pictures_are_enlarged_by_a_whole_factor(size, shown):
    [(*_, height, width)] = pictures(sheet(1, 1, size=size))
    assert (height, width) == (shown, shown)


def test_pixels_stay_sharp():
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    assert np.array_equal(np.asarray(contact_sheet.enlarged(image))[::24, ::24], np.asarray(image))


def test_marks_are_seen():
    plain, right, wrong = (sheet(1, 1, **marks) for marks in ({}, {"marks": [True]}, {"marks": [False]}))
    tinted = [(np.ptp(pixels, axis=-1) > 60) & (pixels != RED).any(-1) for pixels in (plain, right, wrong)]
    assert [mask.any() for mask in tinted] == [False, True, True]
    assert right[tinted[1]].argmax(-1).mean() > 0.9 and wrong[tinted[2]].argmax(-1).mean() < 0.1  # green, red


def test_lines_are_no_wider_than_the_cell_and_lose_no_word():
    text = "a large green triangle to the left of a small blue square on a silver background"
    lines = list(contact_sheet.wrapped(text, 112, 17))
    assert " ".join(lines) == text and max(map(contact_sheet.FONT.getlength, lines)) <= 112
    assert contact_sheet.FONT.getlength(lines[0]) <= 112 - 17
    assert list(contact_sheet.wrapped("", 112, 0)) == [""]


@pytest.mark.parametrize("indent", [0, 17])
def test_a_word_wider_than_the_cell_is_broken(indent):
    path = "out/some_folder/with_a_long_name/00000.png"
    lines = list(contact_sheet.wrapped(f"0.5 * {path} + x", 112, indent))
    assert "".join(lines).replace(" ", "") == f"0.5*{path}+x"
    assert (
        max(map(contact_sheet.FONT.getlength, lines)) <= 112 and contact_sheet.FONT.getlength(lines[0]) <= 112 - indent
    )


def test_a_sheet_of_unequal_lists_is_refused():
    with pytest.raises(ValueError, match="1 pictures, 2 captions"):
        contact_sheet.contact_sheet([Image.new("RGB", (8, 8))], ["one", "two"], 4)
    with pytest.raises(ValueError, match="0 pictures"):
        contact_sheet.contact_sheet([], [], 4)


SERIES = {"linear": ([0, 1, 2], [3.0, 2.0, 1.0]), "residual": ([0, 1, 2], [2.0, float("nan"), 0.5])}


def test_curves_are_one_svg_element_that_inherits_its_colour():
    drawing = figures.curves(SERIES, "losses & <more>")
    assert ElementTree.fromstring(drawing).tag.endswith("svg")
    assert "losses &amp; &lt;more&gt;" in drawing and "linear" in drawing and "residual" in drawing
    assert "currentColor" in drawing.replace("currentcolor", "currentColor") and figures.INHERITED not in drawing
    assert "<!DOCTYPE" not in drawing and "<metadata" not in drawing


def test_the_same_series_are_the_same_svg():
    assert figures.curves(SERIES, "losses") == figures.curves(SERIES, "losses")


def test_curves_are_logarithmic_where_values_span_decades():
    assert figures.spans_decades([1.0, 40.0]) and not figures.spans_decades([1.0, 20.0])
    assert not figures.spans_decades([0.0, 40.0]) and not figures.spans_decades([float("nan")])


def test_a_running_mean_is_the_mean_of_what_is_there():
    assert figures.running_mean(np.array([1.0, 2.0, 6.0]), 3).tolist() == [1.5, 3.0, 4.0]
    assert figures.running_mean(np.array([1.0, 2.0]), 1).tolist() == [1.0, 2.0]


def test_a_timeline_names_each_part_and_its_time():
    drawing = figures.timeline({"clip": 64.2, "decoder": 256.0, "cache": 0.41})
    ElementTree.fromstring(drawing)
    assert all(word in drawing for word in ("clip", "decoder", "cache", "1 min 04 s", "4 min 16 s", "0.4 s"))


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (42.4, "42 s"), (59.6, "1 min 00 s"), (3725, "62 min 05 s")]
)
def test_durations(seconds, said):
    assert figures.duration(seconds) == said
