"""Samplers: plain functions that walk a denoiser from x_T to x_0. They know no network."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import nearest
from open_kandinsky.diffusion import timesteps
from open_kandinsky.diffusion.denoise import Denoise, clamp, first_threshold
from open_kandinsky.diffusion.process import (
    broadcast_to,
    diffuse,
    eps_from_x_0,
    posterior_mean,
    variance_bounds,
    x_0_from_eps,
)
from open_kandinsky.diffusion.timesteps import Grid, Spacing

Noise = Iterator[Tensor]  # one standard normal tensor, like x_t, for each step that asks
Walk = Callable[[Denoise, Tensor, Grid, Noise], Tensor]


def ddpm(denoise: Denoise, x_T: Float[Tensor, "b ..."], grid: Grid, noise: Noise) -> Float[Tensor, "b ..."]:
    """Ancestral sampling of the respaced process, with the network's variance or else the posterior's.

    Ho et al. 2020, algorithm 2; Nichol & Dhariwal 2021, section 4. No noise follows the last step.
    """
    x_t = x_T
    for t, alpha_bar, alpha_bar_next in _walk(grid, x_t):
        x_0, fraction = denoise(x_t, t)
        x_s = posterior_mean(x_t, x_0, alpha_bar, alpha_bar_next)
        if float(alpha_bar_next[0]) == 1:
            return x_s
        low, high = (broadcast_to(bound.log(), x_t) for bound in variance_bounds(alpha_bar, alpha_bar_next))
        log_variance = low if fraction is None else low.lerp(high.expand_as(fraction), fraction)
        x_t = x_s + (log_variance / 2).exp() * next(noise).to(x_t)
    return x_t


def ddim(
    denoise: Denoise, x_T: Float[Tensor, "b ..."], grid: Grid, noise: Noise, eta: float = 0.0
) -> Float[Tensor, "b ..."]:
    """DDIM (Song et al. 2021, eq. 12 and 16): deterministic at eta = 0, as noisy as ancestral sampling at 1."""
    x_t = x_T
    for t, alpha_bar, alpha_bar_next in _walk(grid, x_t):
        x_0 = denoise(x_t, t).x_0
        eps = eps_from_x_0(x_t, x_0, alpha_bar)
        variance = eta**2 * variance_bounds(alpha_bar, alpha_bar_next)[0]
        x_t = (
            broadcast_to(alpha_bar_next.sqrt(), x_t) * x_0
            + broadcast_to((1 - alpha_bar_next - variance).sqrt(), x_t) * eps
        )
        if eta > 0 and float(variance[0]) > 0:
            x_t = x_t + broadcast_to(variance.sqrt(), x_t) * next(noise).to(x_t)
    return x_t


ADAMS_BASHFORTH = [[1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]


def plms(denoise: Denoise, x_T: Float[Tensor, "b ..."], grid: Grid, noise: Noise) -> Float[Tensor, "b ..."]:
    """Pseudo linear multistep of order up to 4 over eps, started by one step of Heun's (Liu et al. 2022, PNDM)."""
    x_t, history = x_T, []
    steps = list(_walk(grid, x_t))
    for i, (t, alpha_bar, alpha_bar_next) in enumerate(steps):
        eps = eps_from_x_0(x_t, denoise(x_t, t).x_0, alpha_bar)
        history = [eps, *history[:3]]
        if i == 0 and len(steps) > 1:
            t_next, at_next, _ = steps[1]
            ahead = diffuse(x_0_from_eps(x_t, eps, alpha_bar), eps, alpha_bar_next)
            combined = (eps + eps_from_x_0(ahead, denoise(ahead, t_next).x_0, at_next)) / 2
        else:
            weights = ADAMS_BASHFORTH[len(history) - 1]
            combined = torch.stack([w * e for w, e in zip(weights, history, strict=True)]).sum(0)
        x_t = diffuse(x_0_from_eps(x_t, combined, alpha_bar), combined, alpha_bar_next)
    return x_t


def dpmpp_2m(denoise: Denoise, x_T: Float[Tensor, "b ..."], grid: Grid, noise: Noise) -> Float[Tensor, "b ..."]:
    """DPM-Solver++(2M): second order in the log signal-to-noise ratio, a call a step (Lu et al. 2022, algorithm 2)."""
    x_t, x_0_last, h_last = x_T, x_T, None
    for t, alpha_bar, alpha_bar_next in _walk(grid, x_t):
        x_0 = denoise(x_t, t).x_0
        h = _half_log_snr(alpha_bar_next) - _half_log_snr(alpha_bar)
        if h_last is None or not bool(h.isfinite().all()):  # the step to clean has infinite length: its limit is x_0
            d = x_0
        else:
            d = x_0 + broadcast_to(h / (2 * h_last), x_t) * (x_0 - x_0_last)
        shrink = ((1 - alpha_bar_next) / (1 - alpha_bar)).sqrt()
        x_t = broadcast_to(shrink, x_t) * x_t - broadcast_to(alpha_bar_next.sqrt() * torch.expm1(-h), x_t) * d
        x_0_last, h_last = x_0, h
    return x_t


def _walk(grid: Grid, x: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each step, one entry an example: t, alpha_bar there, and alpha_bar where the step leads."""
    b = len(x)
    alpha_bar = grid.alpha_bar.to(x.device)
    for i, t in enumerate(grid.t.to(x.device)):
        yield t.expand(b), alpha_bar[i].expand(b), alpha_bar[i + 1].expand(b)


def _half_log_snr(alpha_bar: Tensor) -> Tensor:
    return (alpha_bar.log() - (1 - alpha_bar).log()) / 2


Wrap = Callable[[Denoise], Denoise]


def unchanged(denoise: Denoise) -> Denoise:
    return denoise


def clamp_2(denoise: Denoise) -> Denoise:
    return clamp(denoise, 2.0)


def threshold_by_first(denoise: Denoise) -> Denoise:
    return first_threshold(denoise, 0.995)


class Sampler(NamedTuple):
    """A walk, the grid that it is used with, and what it makes of the denoiser's x_0 before a step."""

    walk: Walk
    spacing: Spacing
    bound: Wrap = unchanged  # before the known part of an inpainted latent is put in
    threshold: Wrap = unchanged  # after that
    extra_calls: int = 0  # of the denoiser, beside one a step, where there is more than one step

    def __call__(
        self, denoise: Denoise, x_T: Float[Tensor, "b ..."], alpha_bar: Float[Tensor, "T"], steps: int, noise: Noise
    ) -> Float[Tensor, "b ..."]:
        return self.along(self.spacing(alpha_bar, steps), denoise, x_T, noise)

    def along(
        self,
        grid: Grid,
        denoise: Denoise,
        x_t: Float[Tensor, "b ..."],
        noise: Noise,
        *,
        blend: Wrap = unchanged,
        watch: Wrap = unchanged,
    ) -> Float[Tensor, "b ..."]:
        """From x_t, at the grid's first timestep, to where the grid leads.

        `blend` puts in what is known of x_0, `watch` sees the x_0 that steps are made of.
        """
        return self.walk(watch(self.threshold(blend(self.bound(denoise)))), x_t, grid, noise)

    def calls(self, grid: Grid) -> int:
        """How often the denoiser is called along a grid."""
        return len(grid.t) + self.extra_calls * (len(grid.t) > 1)


SAMPLERS = {
    "ddpm": Sampler(ddpm, timesteps.spaced),
    "ddim": Sampler(ddim, timesteps.leading),
    "plms": Sampler(plms, timesteps.leading, extra_calls=1),
    "dpmpp_2m": Sampler(dpmpp_2m, timesteps.descending),
    # Kandinsky 2.1's p_sampler: x_0 clamped at 2, then thresholded by the batch's first image, on which others depend.
    "ddpm_official": Sampler(ddpm, timesteps.spaced, clamp_2, threshold_by_first),
    "ddim_official": Sampler(ddim, timesteps.uniform),  # 31 steps for 30
}


def named(name: str) -> Sampler:
    """The sampler of that name; ValueError names those that there are."""
    if name not in SAMPLERS:
        near = nearest(name, SAMPLERS)
        meant = f"; did you mean {near!r}?" if near else ""
        raise UserError(f"sampler={name!r}: no such sampler{meant}; there are {', '.join(SAMPLERS)}")
    return SAMPLERS[name]
