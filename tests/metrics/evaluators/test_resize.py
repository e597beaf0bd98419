"""Each resize against the program that it is named for."""

import numpy as np
import pytest
import torch
from fixtures.evaluators import photos
from PIL import Image
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from open_kandinsky.metrics import evaluators

SIZES = [(256, 256), (512, 512), (299, 299), (480, 640), (32, 1000)]


def by_pil(pixels, size):
    """As clean-fid does it: a channel at a time, in float."""
    channels = [Image.fromarray(channel.numpy().astype(np.float32)) for channel in pixels.flatten(0, 1)]
    resized = [np.asarray(channel.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 255) for channel in channels]
    return torch.from_numpy(np.stack(resized)).unflatten(0, pixels.shape[:2])


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_tf1_is_torch_fidelitys_to_the_bit(h, w):
    pixels = photos(2, h, w)
    theirs = interpolate_bilinear_2d_like_tensorflow1x(pixels.float(), size=(299, 299), align_corners=False)
    assert torch.equal(evaluators.resize_tf1(pixels, 299), theirs)


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_clean_is_pils_bicubic_in_float(h, w):
    pixels = photos(1, h, w)
    torch.testing.assert_close(evaluators.resize_clean(pixels, 224), by_pil(pixels, 224), rtol=0, atol=0.01)


def test_clean_is_clamped_and_not_rounded():
    edge = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    edge[..., 32:] = 255
    x = evaluators.resize_clean(edge, 100)
    assert x.min() == 0 and x.max() == 255 and not torch.equal(x, x.round())
