"""Noise belongs to an image and its seed."""

import pytest
import torch

from open_kandinsky.diffusion.samplers import PerImageNoise


def draws(seeds, n=3, shape=(4, 5)):
    noise = PerImageNoise(seeds, shape)
    return torch.stack([next(noise) for _ in range(n)], dim=1)  # image, draw, ...


def test_an_image_is_the_same_in_any_batch_and_order():
    together = draws([7, 0, 2**32 - 1])
    assert together.equal(torch.cat([draws([7]), draws([0]), draws([2**32 - 1])]))
    assert together.flip(0).equal(draws([2**32 - 1, 0, 7]))


def test_draws_are_float32_and_fresh():
    x = draws([0, 1])
    assert x.dtype == torch.float32
    assert x.shape == (2, 3, 4, 5)
    assert len({float(value) for value in x[..., 0, 0].flatten()}) == 6


@pytest.mark.parametrize("seed", [-1, 2**32, 2**32 + 7, 2**63])
def test_seeds_that_would_lose_bits_are_refused(seed):
    with pytest.raises(ValueError, match=rf"seed {seed}: "):
        PerImageNoise([0, seed], (1,))


def test_a_cpu_generator_does_drop_the_high_bits():
    """The reason for the refusal: if torch mends it, the bound may go."""
    low, high = (torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in (7, 2**32 + 7))
    assert low.equal(high)


def test_adjacent_seeds_and_draws_are_uncorrelated():
    """20,000 numbers each: a correlation's standard error is 0.007; the bound is four of them."""
    x = draws([0, 1], n=2, shape=(20_000,)).flatten(0, 1)
    correlation = torch.corrcoef(x.double()) - torch.eye(4)
    assert correlation.abs().max() < 4 / 20_000**0.5
    assert x.mean(1).abs().max() < 4 / 20_000**0.5
    assert (x.var(1) - 1).abs().max() < 4 * (2 / 20_000) ** 0.5
