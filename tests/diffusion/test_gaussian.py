"""Samplers against the case that can be solved by hand: Gaussian data.

For x_0 ~ N(MEAN, std^2) the ideal denoiser is known, and the probability flow keeps quantiles: it moves x_t along
MEAN sqrt(alpha_bar) + q sqrt(alpha_bar std^2 + 1 - alpha_bar), q constant.
"""

import math

import pytest
import torch
from fixtures.noise import normal, silence

from open_kandinsky.diffusion import samplers, schedule
from open_kandinsky.diffusion.parameterisation import Denoised
from open_kandinsky.diffusion.samplers import Grid, ddim, ddpm, dpmpp_2m, plms

LINEAR = schedule.linear(T=1000, beta_min=0.00085, beta_max=0.012)
COSINE = schedule.cosine(T=1000, s=0.008, beta_max=0.999)
MEAN, STD = 2.0, 0.5


def ideal(alpha_bar, std=STD, mean=MEAN, fraction=None):
    """E[x_0 | x_t] for x_0 ~ N(mean, std^2): the best that any network could do."""

    def denoise(x_t, t):
        a = alpha_bar[t].reshape(-1, 1).to(x_t.dtype)
        x_0 = mean + a.sqrt() * std**2 / (a * std**2 + 1 - a) * (x_t - a.sqrt() * mean)
        return Denoised(x_0, None if fraction is None else torch.full_like(x_0, fraction))

    return denoise


def along_the_flow(q, a):
    return MEAN * math.sqrt(a) + q * math.sqrt(a * STD**2 + 1 - a)


def even_angles(n, start, end):
    """Even steps in the angle of (sqrt(alpha_bar), sqrt(1 - alpha_bar)): smooth, and rounded to no table."""
    angle = torch.linspace(math.acos(start**0.5), math.acos(end**0.5), n + 1, dtype=torch.float64)
    return angle.cos().square()


def even_sigmas(n, start, end):
    """Even steps in sigma = sqrt(1 / alpha_bar - 1), the time in which the flow is dx = eps dsigma."""
    sigma = torch.linspace((1 / start - 1) ** 0.5, (1 / end - 1) ** 0.5, n + 1, dtype=torch.float64)
    return 1 / (1 + sigma.square())


def error(walk, n, path=even_angles, start=0.01, end=0.99):
    alpha_bar = path(n, start, end)
    q = torch.tensor([[1.0], [-0.3]], dtype=torch.float64)
    x = walk(ideal(alpha_bar), along_the_flow(q, start), Grid(torch.arange(n), alpha_bar), silence())
    return float((x - along_the_flow(q, end)).abs().max())


def order(walk, n, path):
    return math.log2(error(walk, n, path) / error(walk, 2 * n, path))


def test_ddim_lands_on_the_exact_solution():
    assert error(ddim, 1000) < 6e-4


@pytest.mark.parametrize(("walk", "expected"), [(ddim, 1), (dpmpp_2m, 2), (plms, 2)])
def test_order_of_convergence(walk, expected):
    """Twice the steps, the error is 2^order times less. A wrong coefficient would give order 0 or 1.

    plms is "pseudo": its weights are those of even steps in sigma, so that on any other grid it is of order 2.
    """
    for n in (40, 80, 160):
        assert order(walk, n, even_angles) == pytest.approx(expected, abs=0.1)


def test_plms_is_of_higher_order_on_the_grid_that_its_weights_are_for():
    """Of order 4 inside, and of order 3 by its first two steps, whose part here is small: between the two."""
    for n in (320, 640):
        assert 3 < order(plms, n, even_sigmas) < 4.1


def test_higher_order_pays_at_few_steps():
    assert error(dpmpp_2m, 20) < error(ddim, 20) / 3
    assert error(plms, 20) < error(ddim, 20) / 3


def assert_drawn_from(x, mean, variance, errors=4.0):
    """Within so many standard errors of what so many independent normal numbers have."""
    n = len(x)
    assert abs(float(x.mean()) - mean) < errors * math.sqrt(variance / n)
    assert abs(float(x.var()) - variance) < errors * variance * math.sqrt(2 / n)


def sample(walk, grid, denoise, shape=(20, 1000)):
    noise = normal(*shape)
    return walk(denoise, next(noise), grid, noise).flatten()


def exact_moments(grid):
    """Mean and variance of what ancestral sampling draws with the ideal denoiser: every step is linear."""
    mean, variance = 0.0, 1.0
    for a, s in zip(grid.alpha_bar[:-1].tolist(), grid.alpha_bar[1:].tolist(), strict=True):
        gain = math.sqrt(a) * STD**2 / (a * STD**2 + 1 - a)
        of_x_0, of_x_t = math.sqrt(s) * (1 - a / s) / (1 - a), math.sqrt(a / s) * (1 - s) / (1 - a)
        slope = of_x_0 * gain + of_x_t
        mean = slope * mean + of_x_0 * (1 - gain * math.sqrt(a)) * MEAN
        variance = slope**2 * variance + (1 - a / s) * (1 - s) / (1 - a)
    return mean, variance


def eta_one(denoise, x_T, grid, noise):
    return ddim(denoise, x_T, grid, noise, eta=1.0)


@pytest.mark.parametrize("walk", [ddpm, eta_one])
def test_ancestral_sampling_draws_gaussian_data(walk):
    grid = samplers.spaced(COSINE, 100)
    assert_drawn_from(sample(walk, grid, ideal(COSINE)), *exact_moments(grid))


def test_ancestral_sampling_is_exact_with_many_steps():
    """Its variance falls short of the data's by 7, 3 and 0.8 %: inversely to the number of steps."""
    moments = [exact_moments(samplers.spaced(COSINE, n)) for n in (100, 250, 1000)]
    assert all(mean == pytest.approx(MEAN, abs=1e-8) for mean, _ in moments)
    short = [1 - variance / STD**2 for _, variance in moments]
    assert short == pytest.approx([0.0696, 0.0300, 0.0080], abs=1e-4)


@pytest.mark.parametrize("steps", [5, 50])
def test_the_upper_bound_is_exact_for_data_of_unit_variance(steps):
    """Ho et al. 2020, section 3.2: beta is then the reverse step's variance, at any number of steps."""
    x_0 = sample(ddpm, samplers.spaced(COSINE, steps), ideal(COSINE, std=1.0, mean=0.0, fraction=1.0))
    assert_drawn_from(x_0, 0, float(COSINE[0]))  # the last step adds none


def test_the_lower_bound_is_the_variance_of_a_network_that_predicts_none():
    grid = samplers.spaced(LINEAR, 20)
    of_network, of_schedule = (sample(ddpm, grid, ideal(LINEAR, fraction=f), shape=(10, 10)) for f in (0.0, None))
    torch.testing.assert_close(of_network, of_schedule, rtol=0, atol=0)


def test_the_upper_bound_spreads_more():
    grid = samplers.spaced(LINEAR, 20)
    low, high = (float(sample(ddpm, grid, ideal(LINEAR, fraction=f)).var()) for f in (0.0, 1.0))
    assert low < STD**2 < high


def test_ddim_of_eta_one_is_ancestral_sampling():
    """Song et al. 2021, section 4.1: with the posterior's variance, and here with the same noise."""
    grid, noise = samplers.spaced(LINEAR, 30), normal(5, 10)
    x_T = next(noise)
    steps = [next(noise) for _ in range(30)]
    ancestral = ddpm(ideal(LINEAR), x_T, grid, iter(steps))
    torch.testing.assert_close(ddim(ideal(LINEAR), x_T, grid, iter(steps), eta=1.0), ancestral, rtol=1e-10, atol=1e-10)
