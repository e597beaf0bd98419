"""The forward process and the identities between x_t, x_0 and eps. Pure functions of tensors."""

import torch
from jaxtyping import Float
from torch import Tensor


def broadcast_to(a: Float[Tensor, "b"], x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """View one scalar per example so that it broadcasts over `x`, in x's precision."""
    return a.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def diffuse(
    x_0: Float[Tensor, "b ..."], eps: Float[Tensor, "b ..."], alpha_bar: Float[Tensor, "b"]
) -> Float[Tensor, "b ..."]:
    """Draw x_t given x_0: `eps` is the noise, `alpha_bar` the signal power left (Ho et al. 2020, eq. 4)."""
    return broadcast_to(alpha_bar.sqrt(), x_0) * x_0 + broadcast_to((1 - alpha_bar).sqrt(), x_0) * eps


def eps_from_x_0(
    x_t: Float[Tensor, "b ..."], x_0: Float[Tensor, "b ..."], alpha_bar: Float[Tensor, "b"]
) -> Float[Tensor, "b ..."]:
    """The noise that carries `x_0` to `x_t`. Undefined where alpha_bar = 1 (there is none)."""
    return (x_t - broadcast_to(alpha_bar.sqrt(), x_t) * x_0) / broadcast_to((1 - alpha_bar).sqrt(), x_t)


def x_0_from_eps(
    x_t: Float[Tensor, "b ..."], eps: Float[Tensor, "b ..."], alpha_bar: Float[Tensor, "b"]
) -> Float[Tensor, "b ..."]:
    """The clean signal that `eps` carries to `x_t`. Undefined where alpha_bar = 0."""
    return (x_t - broadcast_to((1 - alpha_bar).sqrt(), x_t) * eps) / broadcast_to(alpha_bar.sqrt(), x_t)


def snr(alpha_bar: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """Signal-to-noise ratio, alpha_bar / (1 - alpha_bar)."""
    return alpha_bar / (1 - alpha_bar)


def posterior_mean(
    x_t: Float[Tensor, "b ..."],
    x_0: Float[Tensor, "b ..."],
    alpha_bar: Float[Tensor, "b"],
    alpha_bar_next: Float[Tensor, "b"],
) -> Float[Tensor, "b ..."]:
    """Mean of q(x_s | x_t, x_0) for s < t, `alpha_bar_next` being that of s (Ho et al. 2020, eq. 7)."""
    alpha = alpha_bar / alpha_bar_next
    of_x_0 = alpha_bar_next.sqrt() * (1 - alpha) / (1 - alpha_bar)
    of_x_t = alpha.sqrt() * (1 - alpha_bar_next) / (1 - alpha_bar)
    return broadcast_to(of_x_0, x_0) * x_0 + broadcast_to(of_x_t, x_t) * x_t


def variance_bounds(
    alpha_bar: Float[Tensor, "n"], alpha_bar_next: Float[Tensor, "n"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """The least and the greatest sensible variance of p(x_s | x_t): the posterior's, and beta (Ho et al. 2020, 3.2).

    The posterior's is 0 for the last step, to s = clean.
    """
    beta = 1 - alpha_bar / alpha_bar_next
    return beta * (1 - alpha_bar_next) / (1 - alpha_bar), beta


def alpha_bar_prev(alpha_bar: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
    """alpha_bar one step nearer to clean, for every t of a table; 1 before the first."""
    return torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
