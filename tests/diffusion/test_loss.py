"""Losses, against closed forms and against a slow restatement."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from open_kandinsky.core.draws import ALONE
from open_kandinsky.diffusion import schedule
from open_kandinsky.diffusion.loss import Hybrid, MinSNR, Noised, bound, mse, noised
from open_kandinsky.diffusion.parameterisation import X0, Eps, LearnedRange, V
from open_kandinsky.diffusion.process import diffuse, snr

ALPHA_BAR = schedule.linear(T=1000, beta_min=0.00085, beta_max=0.012)
T = torch.tensor([0, 1, 10, 300, 998, 999])
MEANS = [X0(), Eps(), V()]


def generator():
    return torch.Generator().manual_seed(0)


def example():
    x_0, eps = torch.randn(2, len(T), 2, 3, 3, dtype=torch.float64, generator=generator())
    x_0 = x_0.clamp(-1, 1)  # as pixels: some in the first and the last bin
    return Noised(x_0, eps, T, diffuse(x_0, eps, ALPHA_BAR[T]))


def output_for(x_0, n, p):
    """What a network says that takes x_0 for the clean signal behind n.x_t."""
    at = ALPHA_BAR[n.t].reshape(-1, 1, 1, 1)
    return p.target(x_0, (n.x_t - at.sqrt() * x_0) / (1 - at).sqrt(), ALPHA_BAR[n.t])


def learned(n):
    return torch.randn(len(n.t), 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("p", MEANS, ids=lambda p: type(p).__name__)
def test_mse_is_nought_for_a_perfect_network(p):
    n = example()
    assert mse(output_for(n.x_0, n, p), n, ALPHA_BAR, p).max() < 1e-20


@pytest.mark.parametrize("p", MEANS, ids=lambda p: type(p).__name__)
def test_mse_weighs_squared_error_in_x_0(p):
    """In x_0, eps weighs by SNR and v by SNR + 1 (Salimans & Ho 2022, section 4)."""
    n = example()
    weight = {X0: torch.ones(6).double(), Eps: snr(ALPHA_BAR[T]), V: snr(ALPHA_BAR[T]) + 1}[type(p)]
    loss = mse(output_for(n.x_0 + 0.5, n, p), n, ALPHA_BAR, p)
    torch.testing.assert_close(loss, 0.25 * weight, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("p", [*MEANS, LearnedRange(Eps())], ids=lambda p: type(p).__name__)
def test_min_snr_weighs_squared_error_in_x_0_by_the_lesser_of_snr_and_gamma(p, gamma):
    n = example()
    output = output_for(n.x_0 + 0.5, n, p)
    output = torch.cat([output, output], dim=1) if isinstance(p, LearnedRange) else output
    expected = 0.25 * snr(ALPHA_BAR[T]).clamp(max=gamma)
    torch.testing.assert_close(MinSNR(gamma=gamma)(output, n, ALPHA_BAR, p), expected, rtol=1e-8, atol=1e-12)


def slow_bound(output, n, i):
    """Example i, from Nichol & Dhariwal 2021, equations 4, 10, 11 and 15, one line after the other."""
    t = int(n.t[i])
    beta = schedule.linear_beta(T=1000, beta_min=0.00085, beta_max=0.012)
    below = ALPHA_BAR[t - 1] if t > 0 else torch.tensor(1.0).double()
    eps, v = output[i, :2], (output[i, 2:] + 1) / 2
    x_0 = (n.x_t[i] - (1 - ALPHA_BAR[t]).sqrt() * eps) / ALPHA_BAR[t].sqrt()

    def mean(x):
        of_x_0 = below.sqrt() * beta[t] / (1 - ALPHA_BAR[t])
        of_x_t = (1 - beta[t]).sqrt() * (1 - below) / (1 - ALPHA_BAR[t])
        return of_x_0 * x + of_x_t * n.x_t[i]

    s = max(t, 1)  # the posterior's variance at t = 0 is 0: that at t = 1 stands in
    posterior = beta[s] * (1 - ALPHA_BAR[s - 1]) / (1 - ALPHA_BAR[s])
    p = Normal(mean(x_0), (v * beta[t].log() + (1 - v) * posterior.log()).exp().sqrt())
    if t > 0:
        q = Normal(mean(n.x_0[i]), posterior.sqrt())
        return kl_divergence(q, p).mean() / math.log(2)
    return -torch.stack([log_mass(*each) for each in zip(n.x_0[i].flatten(), *flat(p), strict=True)]).mean() / math.log(
        2
    )


def flat(p):
    return p.mean.flatten(), p.stddev.flatten()


def log_mass(x, mean, std):
    """Of the bin of one value, 2/255 wide, by the tanh approximation of the normal's cdf."""

    def cdf(z):
        return 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    above = 1.0 if x > 0.999 else cdf(float((x + 1 / 255 - mean) / std))
    below = 0.0 if x < -0.999 else cdf(float((x - 1 / 255 - mean) / std))
    return torch.tensor(max(above - below, 1e-12)).double().log()


def test_bound_is_the_slow_restatement():
    n = example()
    output = learned(n)
    expected = torch.stack([slow_bound(output, n, i) for i in range(len(T))])
    torch.testing.assert_close(bound(output, n, ALPHA_BAR, LearnedRange(Eps())), expected, rtol=1e-8, atol=1e-10)


def test_likelihood_of_a_good_estimate():
    """As above, where the bins' mass is not at its floor."""
    n = example()
    output = torch.cat([n.eps + 0.02, learned(n)[:, 2:]], dim=1)
    expected = slow_bound(output, n, 0)
    assert 0 < expected < 10
    torch.testing.assert_close(bound(output, n, ALPHA_BAR, LearnedRange(Eps()))[0], expected, rtol=1e-8, atol=1e-10)


def test_bound_is_nought_where_mean_and_variance_are_the_posterior():
    n = example()
    output = torch.cat([n.eps, -torch.ones_like(n.eps)], dim=1)
    assert bound(output, n, ALPHA_BAR, LearnedRange(Eps()))[1:].abs().max() < 1e-9


def gradient(loss, output, n):
    output = output.clone().requires_grad_()
    loss(output, n, ALPHA_BAR, LearnedRange(Eps())).sum().backward()
    return output.grad.chunk(2, dim=1)


def test_gradient_of_the_bound_reaches_the_variance_only():
    n = example()
    of_mean, of_variance = gradient(bound, torch.cat([n.eps + 0.02, learned(n)[:, 2:]], dim=1), n)
    assert of_mean.eq(0).all()
    assert of_variance.flatten(1).abs().amax(1).gt(0).all()


def test_hybrid_trains_the_mean_as_its_first_loss_does_and_the_variance_by_the_bound():
    n = example()
    output = learned(n)
    hybrid, first, second = (gradient(loss, output, n) for loss in (Hybrid(mse), mse, bound))
    torch.testing.assert_close(hybrid[0], first[0], rtol=0, atol=0)
    torch.testing.assert_close(hybrid[1], second[1] * (len(ALPHA_BAR) / 1000), rtol=0, atol=0)
    assert first[1].eq(0).all()


def test_bound_needs_a_variance():
    n = example()
    with pytest.raises(AssertionError, match="predicts none"):
        bound(n.eps, n, ALPHA_BAR, Eps())


@pytest.mark.parametrize("loss", [mse, MinSNR(gamma=5.0), Hybrid(mse)], ids=["mse", "min_snr", "hybrid"])
def test_one_number_an_example_in_the_precision_of_x_0(loss):
    n = Noised(*(x.float() if x.is_floating_point() else x for x in example()))
    value = loss(learned(n).bfloat16(), n, ALPHA_BAR, LearnedRange(Eps()))
    assert value.shape == (len(T),)
    assert value.dtype == torch.float32


def test_noised_draws_all_times_alike():
    """100 times, 100,000 draws: each about 1,000 times, within 5 of its standard errors (of 31)."""
    torch.manual_seed(0)
    n = noised(torch.zeros(100_000, 1), ALPHA_BAR[:100], ALONE)
    assert (torch.bincount(n.t, minlength=100) - 1000).abs().max() < 5 * 1000**0.5
    torch.testing.assert_close(n.x_t, n.eps * (1 - ALPHA_BAR[n.t]).sqrt().float()[:, None], rtol=1e-6, atol=0)
