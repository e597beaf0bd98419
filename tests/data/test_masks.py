"""White is repainted: masks drawn by hand, and the grid of latents against the rule followed pixel by pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from open_kandinsky.core.failures import message
from open_kandinsky.data.masks import check_mask, keep_of


def mask_of(white, levels=(0, 255)):
    return Image.fromarray(np.where(white, levels[1], levels[0]).astype(np.uint8))


def by_hand(text):
    return torch.tensor([[float(c == "1") for c in line] for line in text.split()])[None]


def by_rule(white, factor, rows, columns):
    """What `keep_of` says in words, one latent at a time."""
    height, width = white.shape

    def touched(row, column):
        ys = [min(y, height - 1) for y in range(row * factor, (row + 1) * factor)]
        xs = [min(x, width - 1) for x in range(column * factor, (column + 1) * factor)]
        return any(white[y, x] for y in ys for x in xs)

    painted = [[touched(r, c) for c in range(columns)] for r in range(rows)]
    keep = torch.ones(1, rows, columns)
    for r in range(rows):
        for c in range(columns):
            around = [(y, x) for y in (r - 1, r, r + 1) for x in (c - 1, c, c + 1)]
            if any(painted[y][x] for y, x in around if 0 <= y < rows and 0 <= x < columns):
                keep[0, r, c] = 0
    return keep


def test_one_white_pixel_takes_its_latent_and_the_eight_around_it():
    white = np.zeros((48, 40), bool)
    white[23, 16] = True  # the last row of latent row 2, the first column of latent column 2
    keep = keep_of(mask_of(white), factor=8, rows=6, columns=5)
    assert keep.equal(by_hand("11111 10001 10001 10001 11111 11111"))


def test_a_box_drawn_by_hand():
    white = np.zeros((24, 24), bool)
    white[0:5, 12:24] = True  # latents of 4 pixels: rows 0 and 1, columns 3 to 5
    keep = keep_of(mask_of(white), factor=4, rows=6, columns=6)
    assert keep.equal(by_hand("110000 110000 110000 111111 111111 111111"))


@pytest.mark.parametrize("size", [(8, 8), (9, 31), (64, 48), (33, 17), (40, 41)])
@pytest.mark.parametrize("factor", [1, 4, 8])
@pytest.mark.parametrize("share", [0.002, 0.02])
def test_any_mask_at_any_size(size, factor, share):
    """Latents reach past the mask by up to a U-Net's multiple: there it goes on as at its edge."""
    width, height = size
    rows, columns = (-(-side // (2 * factor)) * 2 for side in (height, width))
    white = np.random.default_rng(width + factor).random((height, width)) < share
    keep = keep_of(mask_of(white), factor=factor, rows=rows, columns=columns)
    assert keep.equal(by_rule(white, factor, rows, columns))


def test_all_white_keeps_nothing_and_black_all():
    assert not keep_of(Image.new("L", (16, 16), 255), factor=4, rows=4, columns=4).any()
    assert keep_of(Image.new("L", (16, 16), 0), factor=4, rows=4, columns=4).all()


def test_from_128_on_a_grey_is_white():
    for level, kept in {0: 1, 127: 1, 128: 0, 255: 0}.items():
        assert float(keep_of(Image.new("L", (8, 8), level), factor=8, rows=1, columns=1)) == kept


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "I;16"])
def test_a_mask_in_any_mode(mode):
    white = np.zeros((24, 24), bool)
    white[:, 16:] = True
    mask = mask_of(white)
    other = Image.fromarray(white.astype(np.uint16) * 65535) if mode == "I;16" else mask.convert(mode)
    assert keep_of(other, factor=4, rows=6, columns=6).equal(keep_of(mask, factor=4, rows=6, columns=6))


def test_what_is_transparent_is_white():
    mask = Image.new("RGBA", (16, 16), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (12, 0, 16, 16))
    assert keep_of(mask, factor=4, rows=4, columns=4).equal(by_hand("1100 1100 1100 1100"))


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (Image.new("L", (40, 50), 255), "a mask of 40x50 pixels for a picture of 50x40: make the mask as large"),
        (Image.new("L", (50, 40), 0), r"nowhere white \(its brightest level is 0 of 255\).*white is what is repainted"),
        (Image.new("L", (50, 40), 127), "its brightest level is 127"),
    ],
)
def test_a_mask_that_cannot_be(mask, told):
    with pytest.raises(ValueError, match=told) as refusal:
        check_mask(mask, Image.new("RGB", (50, 40)))
    assert message(refusal.value)
