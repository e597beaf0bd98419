"""A network that predicts its target perfectly gives x_0 back, whatever it predicts."""

import pytest
import torch

from open_kandinsky.diffusion import schedule
from open_kandinsky.diffusion.parameterisation import X0, Eps, LearnedRange, V, read
from open_kandinsky.diffusion.process import diffuse

MEANS = [X0(), Eps(), V()]
T = torch.tensor([0, 1, 300, 900])
ALPHA_BAR = schedule.linear(T=1000, beta_min=0.00085, beta_max=0.012)[T]


def draw(dtype=torch.float64):
    x_0, eps = torch.randn(2, 4, 3, 5, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return x_0, eps, diffuse(x_0, eps, ALPHA_BAR)


@pytest.mark.parametrize("p", MEANS, ids=lambda p: type(p).__name__)
def test_perfect_network_gives_x_0_back(p):
    x_0, eps, x_t = draw()
    denoised = read(p, p.target(x_0, eps, ALPHA_BAR), x_t, ALPHA_BAR)
    torch.testing.assert_close(denoised.x_0, x_0, rtol=1e-12, atol=1e-12)
    assert denoised.variance_frac is None


@pytest.mark.parametrize("mean", MEANS, ids=lambda p: type(p).__name__)
def test_perfect_network_with_a_variance(mean):
    x_0, eps, x_t = draw()
    p = LearnedRange(mean)
    target = p.target(x_0, eps, ALPHA_BAR)
    torch.testing.assert_close(target, mean.target(x_0, eps, ALPHA_BAR), rtol=0, atol=0)
    denoised = read(p, torch.cat([target, torch.full_like(target, -0.5)], dim=1), x_t, ALPHA_BAR)
    torch.testing.assert_close(denoised.x_0, x_0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(denoised.variance_frac, torch.full_like(x_0, 0.25), rtol=0, atol=0)


@pytest.mark.parametrize(("output", "fraction"), [(-1.0, 0.0), (1.0, 1.0)])
def test_learned_range_reads_its_ends(output, fraction):
    _, read_fraction = LearnedRange(Eps()).split(torch.full((1, 2, 1, 1), output))
    assert float(read_fraction) == fraction


@pytest.mark.parametrize("p", [*MEANS, LearnedRange(V())], ids=lambda p: type(p).__name__)
def test_x_0_weight_is_squared_error_here_for_one_of_x_0(p):
    """At a fixed x_t, move x_0 by 1 and see how far the target moves."""
    x_0, eps, x_t = draw()
    scale = (ALPHA_BAR / (1 - ALPHA_BAR)).sqrt().reshape(-1, 1, 1, 1)
    moved = p.target(x_0 + 1, eps - scale, ALPHA_BAR) - p.target(x_0, eps, ALPHA_BAR)
    expected = p.x_0_weight(ALPHA_BAR).reshape(-1, 1, 1, 1).expand_as(moved)
    torch.testing.assert_close(moved.square(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("p", MEANS, ids=lambda p: type(p).__name__)
def test_read_computes_in_the_precision_of_x_t(p):
    """A network in bfloat16 costs its own rounding and no more: its output is widened before any arithmetic."""
    x_0, eps, x_t = draw(torch.float32)
    output = p.target(x_0, eps, ALPHA_BAR).bfloat16()
    denoised = read(p, output, x_t, ALPHA_BAR).x_0
    assert denoised.dtype == torch.float32
    torch.testing.assert_close(denoised, read(p, output.float(), x_t, ALPHA_BAR).x_0, rtol=0, atol=0)
