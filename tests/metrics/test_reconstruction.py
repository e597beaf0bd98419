"""Reconstruction figures with known answers."""

import math

import pytest
import torch

from open_kandinsky.metrics.reconstruction import ReconstructionMetric, reconstruction


def pictures(n):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8


def test_a_constant_offset_has_a_closed_form():
    metric = ReconstructionMetric()
    metric.update(pictures(4) + 0.2, pictures(4))
    figures = metric.compute()
    assert figures["psnr"] == pytest.approx(20, abs=1e-4)
    assert figures["l1"] == pytest.approx(0.1, abs=1e-6)


def test_flat_pictures_differ_in_luminance_alone():
    a, b = 0.5, 0.6  # on [0, 1]
    expected = (2 * a * b + 0.01**2) / (a**2 + b**2 + 0.01**2)
    x, y = (torch.full((2, 3, 32, 32), 2 * value - 1) for value in (a, b))
    torch.testing.assert_close(reconstruction(x, y)["ssim"], torch.full((2,), expected), rtol=0, atol=1e-4)


def test_psnr_is_averaged_over_pictures_and_not_over_errors():
    metric = ReconstructionMetric()
    offset = torch.tensor([0.2, 0.02]).reshape(2, 1, 1, 1)
    metric.update(pictures(2) + offset, pictures(2))
    assert metric.compute()["psnr"] == pytest.approx((20 + 40) / 2, abs=1e-3)


def test_batches_do_not_matter():
    x, y = pictures(5) + 0.1 * pictures(5).flip(0), pictures(5)
    whole, parts = ReconstructionMetric(), ReconstructionMetric()
    whole.update(x, y)
    for part in zip(x.split(2), y.split(2), strict=True):
        parts.update(*part)
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-6)


def test_one_picture_is_as_good_as_many():
    assert reconstruction(pictures(1) + 0.1, pictures(1))["ssim"].shape == (1,)


def test_what_leaves_the_range_is_clamped_as_when_saved():
    y = torch.ones(1, 3, 32, 32)
    figures = reconstruction(y + 5, y)
    assert figures["l1"].item() == 0 and math.isinf(figures["psnr"].item())
    assert figures["ssim"].item() == pytest.approx(1, abs=1e-6)
