"""Images in, tensors out: every PIL mode, every EXIF turn, and resizing against closed forms."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from open_kandinsky.data.transforms import (
    ClipPixels,
    Pixels,
    centre_box,
    covering,
    open_image,
    to_images,
    to_pixels,
    to_rgb,
    to_tensor,
    to_uint8,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image, form="PNG", **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def corners(image):
    w, h = image.size
    return [image.getpixel(at) for at in [(0, 0), (w - 1, 0), (0, h - 1), (w - 1, h - 1)]]


def test_rgb_is_read_exactly():
    image = noise(7, 5)
    assert open_image(encoded(image)).tobytes() == image.tobytes()


def test_greyscale_repeats_its_channel():
    assert open_image(encoded(Image.new("L", (4, 4), 77))).getpixel((1, 1)) == (77, 77, 77)


def test_bilevel():
    assert open_image(encoded(Image.new("1", (4, 4), 1))).getpixel((1, 1)) == WHITE


@pytest.mark.parametrize(("alpha", "expected"), [(255, 100), (0, 255), (102, 193)])
def test_rgba_lies_on_white(alpha, expected):
    assert open_image(encoded(Image.new("RGBA", (4, 4), (100, 100, 100, alpha)))).getpixel((0, 0)) == (expected,) * 3


def test_grey_with_alpha_lies_on_white():
    assert open_image(encoded(Image.new("LA", (4, 4), (10, 0)))).getpixel((0, 0)) == WHITE


def test_palette_with_and_without_transparency():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((0, 0), 0)
    assert open_image(encoded(image)).getpixel((0, 0)) == (0, 0, 0)
    clear = open_image(encoded(image, transparency=0))
    assert (clear.getpixel((0, 0)), clear.getpixel((1, 1))) == (WHITE, RED)


def test_cmyk_jpeg():
    image = open_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    assert image.mode == "RGB"
    assert np.abs(np.array(image.getpixel((8, 8))) - RED).max() <= 3


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 32896], [65535, 40000, 128]], dtype=np.uint16)
    found = np.array(open_image(encoded(Image.fromarray(values))))[..., 0]
    assert found.tolist() == [[0, 1, 128], [255, 156, 0]]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(form, orientation):
    """The stored picture is the upright one, turned the way the tag undoes (EXIF 2.3, 4.6.4 A)."""
    back = [None, 0, 3, 1, 5, 2, 6, 4][orientation - 1]
    upright = Image.new("RGB", (32, 16), RED)
    for box, colour in [((16, 0, 32, 8), GREEN), ((0, 8, 16, 16), BLUE), ((16, 8, 32, 16), WHITE)]:
        upright.paste(colour, box)
    stored = upright if back is None else upright.transpose(Image.Transpose(back))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}[form]
    image = open_image(encoded(stored, form, exif=exif.tobytes(), **options))
    assert image.size == (32, 16)
    assert np.abs(np.array(corners(image)) - [RED, GREEN, BLUE, WHITE]).max() <= (2 if form == "JPEG" else 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_thin_images_are_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}"):
        open_image(encoded(Image.new("RGB", size)))


def test_oversize_is_refused_before_decoding():
    with pytest.raises(ValueError, match="30x20 is 600 pixels, more than the limit of 599"):
        open_image(encoded(noise(30, 20)), max_pixels=599)
    assert open_image(encoded(noise(30, 20)), max_pixels=600).size == (30, 20)


@pytest.mark.parametrize("side", [10_000, 15_000])
def test_a_bomb_is_a_value_error_without_a_warning(side):
    data = encoded(Image.new("1", (side, side)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="pixels"):
            open_image(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.97])
def test_truncated_files_are_errors(form, share):
    data = encoded(noise(64, 64), form)
    with pytest.raises(ValueError, match="not a usable image"):
        open_image(data[: int(len(data) * share)])


def test_truncated_progressive_jpeg_is_an_error():
    data = encoded(noise(64, 64), "JPEG", progressive=True)
    with pytest.raises(ValueError, match="not a usable image"):
        open_image(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_image_is_an_error(data):
    with pytest.raises(ValueError, match="image"):
        open_image(data)


def test_floating_point_pixels_are_refused():
    with pytest.raises(ValueError, match="no known range"):
        open_image(encoded(Image.new("F", (4, 4), 0.5), "TIFF"))


@pytest.mark.parametrize("transform", [Pixels(size=8), ClipPixels(size=8)])
def test_a_constant_image_stays_constant(transform):
    out = transform(Image.new("RGB", (37, 23), (50, 100, 200)))
    assert out.shape == (3, 8, 8)
    assert (out == out[:, :1, :1]).all()


def test_pixels_keeps_the_centred_square():
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (10, 0, 30, 20))
    for size in (20, 10, 32):
        out = Pixels(size=size)(image)
        assert (out == torch.tensor([-1.0, -1.0, 1.0]).reshape(3, 1, 1)).all(), "red from outside the square came in"


def test_pixels_of_its_own_size_are_untouched():
    image = noise(16, 16)
    torch.testing.assert_close(Pixels(size=16)(image), to_pixels(image), rtol=0, atol=0)


def plainly(image, height, width):
    """What `covering` says, step by step, each with a copy."""
    crop = image.convert("RGB").crop(centre_box(image, height, width))
    crop = crop.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1).float() / 127.5 - 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"])
@pytest.mark.parametrize("size", [(16, 16), (40, 20), (20, 40), (24, 16)])
def test_pixels_are_bit_for_bit_what_plain_steps_give(mode, size):
    image = noise(*size).convert(mode)
    before = image.tobytes()
    for height, width in [(16, 16), (8, 8), (16, 24), (33, 33)]:
        assert torch.equal(covering(image, height, width), plainly(image, height, width))
    assert torch.equal(to_tensor(image), torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))
    assert image.mode == mode and image.tobytes() == before


def test_what_is_rgb_is_not_copied():
    image = noise(5, 3)
    assert to_rgb(image) is image
    to_tensor(image).fill_(0)
    assert image.tobytes() == noise(5, 3).tobytes(), "the tensor has its own memory"


def test_shrinking_averages():
    """One-pixel stripes would alias to 0 or 255 without antialiasing."""
    stripes = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))).convert("RGB")
    assert Pixels(size=8)(stripes).abs().max() < 0.05


@pytest.mark.parametrize("size", [(40, 20), (33, 57), (21, 20), (224, 224)])
def test_clip_pixels_is_open_clips_preprocessing(size):
    from open_clip.transform import image_transform

    image = noise(*size)
    torch.testing.assert_close(ClipPixels(size=20)(image), image_transform(20, is_train=False)(image))


def test_uint8_round_trip_is_exact():
    image = noise(9, 7)
    assert to_images(to_pixels(image)[None])[0].tobytes() == image.tobytes()
    assert (to_uint8(to_pixels(image)).numpy() == np.array(image)).all()


def test_uint8_rounds_and_clamps():
    pixels = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).expand(2, 3, 1, 5)
    assert to_uint8(pixels)[1, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
