"""The identities of the forward process, each against another way to the same number."""

import torch

from open_kandinsky.diffusion import schedule
from open_kandinsky.diffusion.process import (
    alpha_bar_prev,
    broadcast_to,
    diffuse,
    eps_from_x_0,
    posterior_mean,
    snr,
    variance_bounds,
    x_0_from_eps,
)

ALPHA_BAR = schedule.cosine(T=50, s=0.008, beta_max=0.999)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_over_has_one_number_an_example_in_the_precision_of_x():
    spread = broadcast_to(torch.tensor([1.0, 2.0], dtype=torch.float64), torch.zeros(2, 3, 4, 4))
    assert spread.shape == (2, 1, 1, 1)
    assert spread.dtype == torch.float32


def test_eps_and_x_0_are_found_again():
    x_0, eps = draw(2, 50, 3)
    x_t = diffuse(x_0, eps, ALPHA_BAR)
    torch.testing.assert_close(eps_from_x_0(x_t, x_0, ALPHA_BAR), eps, rtol=1e-9, atol=1e-9)
    # alpha_bar ends at 2e-7, so that x_0 returns with 2,000 times the rounding of x_t
    torch.testing.assert_close(x_0_from_eps(x_t, eps, ALPHA_BAR), x_0, rtol=1e-9, atol=1e-9)


def test_diffuse_gives_the_signal_to_noise_ratio():
    x_t_signal = diffuse(torch.ones(50, 1).double(), torch.zeros(50, 1).double(), ALPHA_BAR)
    x_t_noise = diffuse(torch.zeros(50, 1).double(), torch.ones(50, 1).double(), ALPHA_BAR)
    torch.testing.assert_close((x_t_signal / x_t_noise).square().flatten(), snr(ALPHA_BAR))


def test_posterior_by_bayes():
    """q(x_s | x_t, x_0) is the normalised product of q(x_t | x_s) and q(x_s | x_0): precisions add."""
    at, below = ALPHA_BAR[5:], ALPHA_BAR[:-5]  # s five steps below t
    alpha = at / below
    x_0, x_t = draw(2, 45, 1)
    precision = alpha / (1 - alpha) + 1 / (1 - below)
    mean = (x_t[:, 0] * alpha.sqrt() / (1 - alpha) + x_0[:, 0] * below.sqrt() / (1 - below)) / precision
    torch.testing.assert_close(posterior_mean(x_t, x_0, at, below)[:, 0], mean, rtol=1e-10, atol=1e-12)
    low, high = variance_bounds(at, below)
    torch.testing.assert_close(low, 1 / precision, rtol=1e-10, atol=0)
    torch.testing.assert_close(high, 1 - alpha)


def test_the_last_step_has_no_variance_and_returns_x_0():
    at, clean = ALPHA_BAR[:1], torch.ones(1, dtype=torch.float64)
    assert float(variance_bounds(at, clean)[0]) == 0
    x_0, x_t = draw(2, 1, 4)
    torch.testing.assert_close(posterior_mean(x_t, x_0, at, clean), x_0, rtol=0, atol=1e-15)


def test_before_is_one_step_nearer_to_clean():
    assert alpha_bar_prev(ALPHA_BAR).tolist() == [1.0, *ALPHA_BAR.tolist()[:-1]]
