"""Samplers: plain functions that walk a denoiser from x_T to x_0, the timesteps that they visit, and their noise.

    x_0 = named("ddim")(denoise, x_T, alpha_bar, steps=50, noise=PerImageNoise(seeds, shape))

They know no network. `SAMPLERS` at the end has them by name.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import nearest
from open_kandinsky.diffusion.denoise import Denoise, clamp, first_threshold
from open_kandinsky.diffusion.process import (
    broadcast_to,
    diffuse,
    eps_from_x_0,
    posterior_mean,
    variance_bounds,
    x_0_from_eps,
)


class Grid(NamedTuple):
    """The timesteps that a sampler visits, descending. alpha_bar has one entry more: where the last step leads."""

    t: Int[Tensor, "n"]
    alpha_bar: Float[Tensor, "n+1"]


Spacing = Callable[[Tensor, int], Grid]


def spaced(alpha_bar: Float[Tensor, "T"], n: int) -> Grid:
    """Even strides from T-1 down to 0, then clean: the grid of respaced ancestral sampling (guided-diffusion).

    One step visits T-1 alone.
    """
    T = _check(alpha_bar, n)
    stride = (T - 1) / max(n - 1, 1)
    t, at = [], 0.0
    for _ in range(n):  # the official sum, rounding included: i * stride differs for some n
        t.append(round(at))
        at += stride
    return _grid(alpha_bar, t[::-1] if n > 1 else [T - 1], end=1.0)


def uniform(alpha_bar: Float[Tensor, "T"], n: int) -> Grid:
    """Kandinsky 2.1's DDIM grid, range(0, T, T // n) + 1: it takes more than n steps where n does not divide T.

    Where it would read past the table, as the official code does (333 of 1000, any above T / 2), it is refused. One
    step visits T-1 alone: the official grid would take pure noise for the picture as it is at t = 1.
    """
    T = _check(alpha_bar, n)
    t = [t + 1 for t in range(0, T, T // n)][::-1] if n > 1 else [T - 1]
    return _within(alpha_bar, n, t)


def leading(alpha_bar: Float[Tensor, "T"], n: int) -> Grid:
    """`uniform`, cut to exactly n steps (the same grid where n divides T).

    Above T / 2, where strides of one would begin at t = n in place of near T, strides alternate between one and two;
    n = T is past the table and refused. One step visits T-1 alone.
    """
    T = _check(alpha_bar, n)
    strides = [i * (T // n) if 2 * n <= T else i * T // n for i in range(n)]
    t = [at + 1 for at in strides][::-1] if n > 1 else [T - 1]
    return _within(alpha_bar, n, t)


def descending(alpha_bar: Float[Tensor, "T"], n: int) -> Grid:
    """n even strides from T-1 that would reach 0 one step later, then clean: for solvers of high order.

    It has no place for T steps: t = 0 is not among them, so one would be visited twice.
    """
    T = _check(alpha_bar, n)
    if n == T > 1:
        raise UserError(f"steps={n}: this sampler's grid would visit a timestep twice; {T - 1} steps fit")
    return _grid(alpha_bar, [round((T - 1) * i / n) for i in range(n, 0, -1)], end=1.0)


def last_steps(grid: Grid, n: int) -> Grid:
    """The last n steps of a grid, 1 to all of them."""
    assert 1 <= n <= len(grid.t)
    return Grid(grid.t[-n:], grid.alpha_bar[-n - 1 :])


def _check(alpha_bar: Tensor, n: int) -> int:
    if not 1 <= n <= len(alpha_bar):
        raise UserError(f"steps={n}: a schedule of {len(alpha_bar)} timesteps allows 1 to {len(alpha_bar)} steps")
    return len(alpha_bar)


def _within(alpha_bar: Tensor, n: int, t: list[int]) -> Grid:
    """A grid that begins one step late and so may end past the table; it leads to t = 0."""
    T = len(alpha_bar)
    if t[0] >= T:
        raise UserError(
            f"steps={n}: this sampler's grid would visit t={t[0]}, past the last, {T - 1}; {T // 2} steps fit"
        )
    return _grid(alpha_bar, t, end=float(alpha_bar[0]))


def _grid(alpha_bar: Tensor, t: list[int], end: float) -> Grid:
    index = torch.tensor(t, device=alpha_bar.device)
    return Grid(index, torch.cat([alpha_bar[index], alpha_bar.new_tensor([end])]))


Noise = Iterator[Tensor]  # one standard normal tensor, like x_t, for each step that asks
Walk = Callable[[Denoise, Tensor, Grid, Noise], Tensor]


def ddpm(denoise: Denoise, x_T: Float[Tensor, "b ..."], grid: Grid, noise: Noise) -> Float[Tensor, "b ..."]:
    """Ancestral sampling of the respaced process, with the network's variance or else the posterior's.

    Ho et al. 2020, algorithm 2; Nichol & Dhariwal 2021, section 4. No noise follows the last step.
    """
    x_t = x_T
    for t, alpha_bar, alpha_bar_next in _walk(grid, x_t):
        x_0, variance_frac = denoise(x_t, t)
        x_s = posterior_mean(x_t, x_0, alpha_bar, alpha_bar_next)
        if float(alpha_bar_next[0]) == 1:
            return x_s
        low, high = (broadcast_to(bound.log(), x_t) for bound in variance_bounds(alpha_bar, alpha_bar_next))
        log_variance = low if variance_frac is None else low.lerp(high.expand_as(variance_frac), variance_frac)
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


def check_seeds(seeds: Sequence[int]) -> None:
    """ValueError for a seed that a CPU generator would cut: it uses the low 32 bits."""
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise UserError(f"seed {seed}: seeds are from 0 to 2^32 - 1 (a CPU generator drops the higher bits)")


class PerImageNoise:
    """An endless iterator of standard normal batches in which every image has its own generator.

    Image i draws the same numbers in any batch, on any device and number of processes: generators live on the CPU,
    draws are contiguous float32.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        check_seeds(seeds)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = tuple(shape), device

    def __iter__(self) -> "PerImageNoise":
        return self

    def __next__(self) -> Float[Tensor, "b ..."]:
        draws = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return torch.stack(draws).to(self.device)


Wrap = Callable[[Denoise], Denoise]


def unchanged(denoise: Denoise) -> Denoise:
    return denoise


class Sampler(NamedTuple):
    """A walk, the spacing of its grid, and how it limits the denoiser's x_0 before each step."""

    walk: Walk
    spacing: Spacing
    bound: Wrap = unchanged  # applied before the known part of an inpainted latent is put in
    threshold: Wrap = unchanged  # applied after it
    extra_calls: int = 0  # of the denoiser, in addition to one a step, if there is more than one step

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

        `blend` puts in the known part of x_0, `watch` sees the x_0 that each step uses.
        """
        return self.walk(watch(self.threshold(blend(self.bound(denoise)))), x_t, grid, noise)

    def calls(self, grid: Grid) -> int:
        """How often the denoiser is called along a grid."""
        return len(grid.t) + self.extra_calls * (len(grid.t) > 1)


SAMPLERS = {
    "ddpm": Sampler(ddpm, spaced),
    "ddim": Sampler(ddim, leading),
    "plms": Sampler(plms, leading, extra_calls=1),
    "dpmpp_2m": Sampler(dpmpp_2m, descending),
    # Kandinsky 2.1's p_sampler: x_0 clamped at 2, then thresholded by the batch's first image, on which others depend.
    "ddpm_official": Sampler(
        ddpm, spaced, bound=partial(clamp, limit=2.0), threshold=partial(first_threshold, quantile=0.995)
    ),
    "ddim_official": Sampler(ddim, uniform),  # 31 steps for 30
}


def named(name: str) -> Sampler:
    """The sampler of a name. ValueError for an unknown name, with a list of all."""
    if name not in SAMPLERS:
        near = nearest(name, SAMPLERS)
        meant = f"; did you mean {near!r}?" if near else ""
        raise UserError(f"sampler={name!r}: no such sampler{meant}; there are {', '.join(SAMPLERS)}")
    return SAMPLERS[name]
