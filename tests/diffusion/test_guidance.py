"""Guidance, on a denoiser whose conditions are numbers."""

import pytest
import torch

from open_kandinsky.diffusion.denoise import denoiser, guide
from open_kandinsky.diffusion.parameterisation import Denoised, Eps, LearnedRange, V
from open_kandinsky.diffusion.process import eps_from_x_0

ALPHA_BAR = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
T = torch.tensor([0, 1, 2])
CONDITION, NULL = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)


def network(condition):
    def predict(x_t, t):
        return torch.tanh(x_t + condition[:, None, None, None]) + t[:, None, None, None]

    return predict


def x_t():
    return torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def estimates(p):
    conditional, unconditional = (denoiser(network(c), p, ALPHA_BAR)(x_t(), T).x_0 for c in (CONDITION, NULL))
    return conditional, unconditional


def guided(p, scale):
    return guide(denoiser(network(torch.cat([CONDITION, NULL])), p, ALPHA_BAR), scale)(x_t(), T)


def test_scale_one_is_the_conditional_estimate():
    torch.testing.assert_close(guided(Eps(), 1.0).x_0, estimates(Eps())[0], rtol=0, atol=1e-13)


def test_scale_nought_is_the_unconditional_estimate():
    torch.testing.assert_close(guided(Eps(), 0.0).x_0, estimates(Eps())[1], rtol=0, atol=0)


@pytest.mark.parametrize("scale", [0.5, 4.0, 7.5])
def test_linear_in_x_0(scale):
    conditional, unconditional = estimates(Eps())
    expected = unconditional + scale * (conditional - unconditional)
    torch.testing.assert_close(guided(Eps(), scale).x_0, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [0.5, 4.0, 7.5])
def test_and_so_in_eps(scale):
    """Guiding x_0 is the same as guiding what an eps network said."""
    eps = network(NULL)(x_t(), T).lerp(network(CONDITION)(x_t(), T), scale)
    of_guided = eps_from_x_0(x_t(), guided(Eps(), scale).x_0, ALPHA_BAR)
    torch.testing.assert_close(of_guided, eps, rtol=0, atol=1e-12)


def test_and_in_v():
    v = network(NULL)(x_t(), T).lerp(network(CONDITION)(x_t(), T), 3.0)
    torch.testing.assert_close(guided(V(), 3.0).x_0, V().x_0(v, x_t(), ALPHA_BAR), rtol=0, atol=1e-12)


def test_variance_is_the_conditional_half():
    def of_doubled(x, t):
        x = torch.cat([x, x], dim=1)  # to as many channels as a network with a variance gives
        return network(torch.cat([CONDITION, NULL]))(x, t)

    doubled = guide(denoiser(of_doubled, LearnedRange(Eps()), ALPHA_BAR), 5.0)(x_t(), T)
    expected = (network(CONDITION)(x_t(), T) + 1) / 2
    torch.testing.assert_close(doubled.variance_frac, expected, rtol=0, atol=0)


def test_one_call_serves_both_halves():
    calls = []

    def denoise(x, t):
        calls.append((x.shape[0], t.tolist()))
        return Denoised(x, None)

    guide(denoise, 4.0)(x_t(), T)
    assert calls == [(6, [0, 1, 2, 0, 1, 2])]
