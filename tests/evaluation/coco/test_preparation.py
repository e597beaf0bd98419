"""Crops and resizes are, to the bit, those of the tools that they are named after."""

import io

import numpy as np
import pytest
from fixtures.pictures import array, photo, refused
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as theirs

from open_kandinsky.evaluation.preparation import CROPS, FILTERS, Preparation

SIZES = [(64, 48), (47, 64), (40, 40), (33, 30), (30, 33), (7, 64), (64, 61)]


def prepared(image, crop="centre", filter="bicubic", size=32, jpeg_before=None, jpeg_after=None):
    preparation = Preparation(crop=crop, filter=filter, size=size, jpeg_before=jpeg_before, jpeg_after=jpeg_after)
    return preparation(image)


def assert_same(ours, reference):
    assert ours.mode == "RGB" and ours.size == reference.size
    assert np.array_equal(array(ours), array(reference.convert("RGB")))


def jpeg(image, quality):
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=quality)
    return Image.open(io.BytesIO(data.getvalue())).convert("RGB")


def numbered(width, height):
    """A picture whose pixels say where they are: red is x, green is y."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def corner(image):
    return tuple(int(value) for value in array(image)[0, 0, :2])


@pytest.mark.parametrize("width, height", SIZES)
@pytest.mark.parametrize("filter", FILTERS)
def test_centre_is_t2ibenchmarks_and_nemos(width, height, filter):
    """A slice of the array from half of what is to spare, rounded down; then PIL's resize of that alone."""
    image, side = photo((width, height)), min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    cut = Image.fromarray(np.asarray(image)[top : top + side, left : left + side])
    assert_same(prepared(image, "centre", filter), cut.resize((32, 32), FILTERS[filter]))


@pytest.mark.parametrize("width, height", SIZES)
def test_centre_rounded_is_gigagans(width, height):
    image = photo((width, height))
    cut = theirs.center_crop(image, [min(image.size)] * 2)
    assert_same(prepared(image, "centre_rounded", "lanczos"), cut.resize((32, 32), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("width, height", SIZES)
def test_short_side_is_torchvisions(width, height):
    image = photo((width, height))
    theirs_ = theirs.center_crop(theirs.resize(image, [32], InterpolationMode.BICUBIC), [32])
    assert_same(prepared(image, "short_side"), theirs_)


@pytest.mark.parametrize("width, height", SIZES)
def test_stretch_is_pils_resize(width, height):
    image = photo((width, height))
    assert_same(prepared(image, "stretch", "box"), image.resize((32, 32), Image.Resampling.BOX))


def test_where_a_square_begins():
    """With 0 to 7 pixels to spare; the two differ at 3 and 7, by one pixel."""
    begin = {crop: [corner(prepared(numbered(9 + n, 9), crop, size=None))[0] for n in range(8)] for crop in CROPS}
    assert begin["centre"] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert begin["centre_rounded"] == [0, 0, 1, 2, 2, 2, 3, 4] == begin["short_side"]
    assert begin["stretch"] == [0] * 8


def test_without_a_size_nothing_is_resized():
    image = numbered(20, 13)
    assert prepared(image, "centre", size=None).size == (13, 13)
    assert_same(prepared(image, "stretch", size=None), image)
    assert_same(prepared(image, "short_side", size=None), prepared(image, "centre_rounded", size=None))


def test_a_picture_of_that_size_stays_as_it_is():
    for crop in CROPS:
        assert_same(prepared(photo((32, 32)), crop), photo((32, 32)))


def test_no_pixel_from_outside_the_crop_is_let_in():
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (16, 0, 48, 32))
    for crop in ("centre", "centre_rounded"):
        assert prepared(image, crop, "lanczos", 16).getcolors() == [(256, (0, 0, 255))]


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1), (2, 3)])
def test_pictures_one_pixel_wide(crop, size):
    assert prepared(Image.new("RGB", size, "green"), crop, size=8).getcolors() == [(64, (0, 128, 0))]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_are_converted_as_pil_does(mode):
    image = photo((40, 30)).convert(mode)
    assert_same(prepared(image), prepared(image.convert("RGB")))


def test_transparency_is_dropped():
    image = photo((40, 30)).convert("RGBA")
    image.putalpha(0)
    assert_same(prepared(image), prepared(photo((40, 30))))


@pytest.mark.parametrize("mode", ["I", "I;16", "F"])
def test_more_than_8_bits_are_refused(mode):
    refused(f"mode '{mode}' has more than 8 bits", prepared, Image.new(mode, (40, 30)))


def test_jpeg_is_written_before_or_after():
    image = photo((50, 40))
    assert_same(prepared(image, jpeg_before=90), prepared(jpeg(image, 90)))
    assert_same(prepared(image, jpeg_after=95), jpeg(prepared(image), 95))
    assert not np.array_equal(array(prepared(image, jpeg_before=90)), array(prepared(image)))


def test_the_picture_that_was_given_is_left_alone():
    image, before = photo((50, 40)), array(photo((50, 40)))
    for crop in CROPS:
        prepared(image, crop, jpeg_before=50, jpeg_after=50)
    assert np.array_equal(array(image), before)


def test_what_is_distorted_can_be_counted():
    def distorts(crop, size, *sides):
        return Preparation(crop=crop, filter="box", size=size, jpeg_before=None, jpeg_after=None).distorts(*sides)

    assert distorts("stretch", 32, 40, 30) and not distorts("stretch", 32, 40, 40)
    assert not distorts("centre", 32, 40, 30) and not distorts("stretch", None, 40, 30)


def test_its_identity_is_all_of_its_numbers():
    given = {"crop": "centre", "filter": "lanczos", "size": 256, "jpeg_before": None, "jpeg_after": 95}
    assert Preparation(**given).identity() == given
    assert Preparation(**given) == Preparation(**given) != Preparation(**given | {"size": 255})


@pytest.mark.parametrize(
    "change, told",
    [
        (
            {"crop": "center"},
            r"crop=center: no such choice; did you mean 'centre'\? there are: centre, centre_rounded, short_side",
        ),
        ({"filter": "bicubik"}, "filter=bicubik: no such choice; did you mean 'bicubic'"),
        ({"size": 0}, "size=0: 1 pixel a side or more"),
        ({"jpeg_before": 0}, "jpeg_before=0: a quality is 1 to 100"),
        ({"jpeg_after": 101}, "jpeg_after=101: a quality is 1 to 100"),
    ],
)
def test_choices_that_there_are_not(change, told):
    refused(told, prepared, photo(), **change)
