"""Training losses, one number an example. They see a network's output through its parameterisation only."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_kandinsky.core.draws import Draws
from open_kandinsky.diffusion.parameterisation import Parameterisation
from open_kandinsky.diffusion.process import alpha_bar_prev, broadcast_to, diffuse, posterior_mean, snr, variance_bounds


class Noised(NamedTuple):
    """A noised training batch: x_0, its noise eps, the timestep t of each example, and the network's input x_t."""

    x_0: Float[Tensor, "b ..."]
    eps: Float[Tensor, "b ..."]
    t: Int[Tensor, "b"]
    x_t: Float[Tensor, "b ..."]


Loss = Callable[[Tensor, Noised, Tensor, Parameterisation], Tensor]


def noised(x_0: Float[Tensor, "b ..."], alpha_bar: Float[Tensor, "T"], draws: Draws) -> Noised:
    """Draw t uniformly and noise for each example."""
    t = draws.integers(x_0, len(alpha_bar))
    eps = draws.normal(x_0)
    return Noised(x_0, eps, t, diffuse(x_0, eps, alpha_bar[t]))


def mse(output: Tensor, n: Noised, alpha_bar: Float[Tensor, "T"], p: Parameterisation) -> Float[Tensor, "b"]:
    """Mean squared error between the network's prediction and its target (Ho et al. 2020, eq. 14)."""
    prediction = p.split(output.to(n.x_0.dtype))[0]
    return _mean(prediction - p.target(n.x_0, n.eps, alpha_bar[n.t]), power=2)


class MinSNR:
    """Squared error whose weight in x_0 is min(SNR, gamma) (Hang et al. 2023, eq. 10)."""

    def __init__(self, *, gamma: float) -> None:
        self.gamma = gamma

    def __call__(self, output: Tensor, n: Noised, alpha_bar: Tensor, p: Parameterisation) -> Float[Tensor, "b"]:
        weight = snr(alpha_bar[n.t]).clamp(max=self.gamma) / p.x_0_weight(alpha_bar[n.t])
        return weight.to(n.x_0.dtype) * mse(output, n, alpha_bar, p)


class Hybrid:
    """A loss on the mean, and T/1000 of the variational bound that teaches the variance alone.

    With `mse`, the loss of Kandinsky's decoder (Nichol & Dhariwal 2021, eq. 16; the bound in bits a dimension).
    """

    def __init__(self, mean: Loss) -> None:
        self.mean = mean

    def __call__(self, output: Tensor, n: Noised, alpha_bar: Tensor, p: Parameterisation) -> Float[Tensor, "b"]:
        return self.mean(output, n, alpha_bar, p) + bound(output, n, alpha_bar, p) * (len(alpha_bar) / 1000)


def bound(output: Tensor, n: Noised, alpha_bar: Float[Tensor, "T"], p: Parameterisation) -> Float[Tensor, "b"]:
    """One term of the variational bound, in bits a dimension; its gradient reaches the predicted variance only.

    KL(q(x_{t-1} | x_t, x_0) || p) for t > 0, and at t = 0 the likelihood of x_0 in bins of 2/255.
    """
    prediction, variance_frac = p.split(output.to(n.x_0.dtype))
    assert variance_frac is not None, "the bound trains a variance, and this parameterisation predicts none"
    at, below = alpha_bar[n.t], alpha_bar_prev(alpha_bar)[n.t]
    x_0 = p.x_0(prediction.detach(), n.x_t, at)
    mean, true_mean = (posterior_mean(n.x_t, x, at, below) for x in (x_0, n.x_0))
    low, high = (broadcast_to(v, n.x_0) for v in _log_variance_bounds(alpha_bar, n.t))
    log_variance = low.lerp(high.expand_as(variance_frac), variance_frac)
    kl = _mean(_kl_normal(true_mean, low, mean, log_variance), power=1)
    likelihood = _mean(_log_likelihood_of_bins(n.x_0, mean, log_variance), power=1)
    return torch.where(n.t == 0, -likelihood, kl) / math.log(2)


def _log_variance_bounds(alpha_bar: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    low, high = variance_bounds(alpha_bar, alpha_bar_prev(alpha_bar))
    low = torch.cat([low[1:2], low[1:]])  # the posterior's variance is 0 at t = 0; its neighbour stands in
    return low.log()[t], high.log()[t]


def _kl_normal(mean_q: Tensor, log_q: Tensor, mean_p: Tensor, log_p: Tensor) -> Tensor:
    return 0.5 * (log_p - log_q - 1 + (log_q - log_p).exp() + (mean_q - mean_p).square() * (-log_p).exp())


def _log_likelihood_of_bins(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log of the normal's mass in the bin around x; the bins at -1 and 1 reach to infinity (Ho et al. 2020, eq. 13)."""
    inverse_std = (-log_variance / 2).exp()
    above = _normal_cdf((x - mean + 1 / 255) * inverse_std)
    below = _normal_cdf((x - mean - 1 / 255) * inverse_std)
    mass = torch.where(x > 0.999, 1 - below, torch.where(x < -0.999, above, above - below))
    return mass.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation, as in the official loss: an exact one would not give its numbers."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _mean(x: Float[Tensor, "b ..."], power: int) -> Float[Tensor, "b"]:
    return x.pow(power).flatten(1).mean(1)
