"""Wrappers from one denoise to another."""

import torch

from open_kandinsky.diffusion.denoise import clamp, denoiser, dynamic_threshold, first_threshold, keep_known
from open_kandinsky.diffusion.parameterisation import Denoised, Eps
from open_kandinsky.diffusion.process import diffuse

T = torch.tensor([0, 1])
FRACTION = torch.tensor(0.25)


def says(x_0):
    return lambda x_t, t: Denoised(x_0, FRACTION)


def test_each_example_is_read_at_its_own_time():
    alpha_bar = torch.tensor([0.9, 0.2], dtype=torch.float64)
    x_0, eps = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoise = denoiser(lambda x_t, t: eps, Eps(), alpha_bar)
    torch.testing.assert_close(denoise(diffuse(x_0, eps, alpha_bar), T).x_0, x_0)


def test_clamp():
    x_0, variance_frac = clamp(says(torch.tensor([[-30.0, -10, 3], [10, 11, 0]])), 10.0)(torch.zeros(2, 3), T)
    assert x_0.tolist() == [[-10, -10, 3], [10, 10, 0]]
    assert variance_frac is FRACTION


def test_dynamic_threshold_is_each_images_own():
    """The official code took the first image's for all of a batch."""
    images = torch.stack([torch.linspace(-4, 4, 101), torch.linspace(-0.5, 0.5, 101), torch.linspace(-9, 9, 101)])
    threshold = dynamic_threshold(says(images), 0.9)
    x_0 = threshold(torch.zeros_like(images), T).x_0
    for i, s in enumerate([4 * 0.9, 1.0, 9 * 0.9]):  # |x_0| is uniform: its quantile 0.9 is 0.9 of its greatest
        torch.testing.assert_close(x_0[i], images[i].clamp(-s, s) / s)
        alone = dynamic_threshold(says(images[i : i + 1]), 0.9)(torch.zeros(1, 101), T).x_0
        assert alone.equal(x_0[i : i + 1])


def test_dynamic_threshold_lets_an_image_within_one_pass():
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    denoised = dynamic_threshold(says(image), 0.995)(torch.zeros_like(image), T)
    assert denoised.x_0.equal(image)
    assert denoised.variance_frac is FRACTION


def test_first_threshold_is_the_first_images_for_all():
    """As the official code: within a batch, an image depends on another."""
    images = torch.stack([torch.linspace(-4, 4, 101), torch.linspace(-9, 9, 101), torch.linspace(-0.5, 0.5, 101)])
    denoised = first_threshold(says(images), 0.9)(torch.zeros_like(images), T)
    torch.testing.assert_close(denoised.x_0, images.clamp(-3.6, 3.6) / 3.6)
    assert denoised.variance_frac is FRACTION
    reverse = first_threshold(says(images.flip(0)), 0.9)(torch.zeros_like(images), T).x_0
    assert reverse.equal(images.flip(0).clamp(-1, 1)), "the first is within one, so that all are clamped at one"


def test_keep_known():
    known, guess = torch.full((2, 4), 7.0), torch.arange(8.0).view(2, 4)
    keep = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0.5, 1]])
    x_0, variance_frac = keep_known(says(guess), known, keep)(torch.zeros(2, 4), T)
    assert x_0.tolist() == [[7, 1, 7, 3], [4, 5, 6.5, 7]]
    assert variance_frac is FRACTION
