"""Which timesteps a sampler visits. A grid is a value: the steps, descending, and alpha_bar at each and at the end."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Grid(NamedTuple):
    """Steps to visit; alpha_bar has one entry more, that of where the last step leads."""

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
    """Kandinsky 2.1's DDIM grid, range(0, T, T // n) + 1: it takes more than n steps where n does not divide T."""
    T = _check(alpha_bar, n)
    return _grid(alpha_bar, [t + 1 for t in range(0, T, T // n)][::-1], end=float(alpha_bar[0]))


def leading(alpha_bar: Float[Tensor, "T"], n: int) -> Grid:
    """`uniform`, cut to exactly n steps (the same grid where n divides T)."""
    T = _check(alpha_bar, n)
    return _grid(alpha_bar, [i * (T // n) + 1 for i in range(n)][::-1], end=float(alpha_bar[0]))


def descending(alpha_bar: Float[Tensor, "T"], n: int) -> Grid:
    """n even strides from T-1 that would reach 0 one step later, then clean: for solvers of high order."""
    T = _check(alpha_bar, n)
    return _grid(alpha_bar, [round((T - 1) * i / n) for i in range(n, 0, -1)], end=1.0)


def _check(alpha_bar: Tensor, n: int) -> int:
    if not 1 <= n <= len(alpha_bar):
        raise ValueError(f"steps={n}: a schedule of {len(alpha_bar)} timesteps allows 1 to {len(alpha_bar)} steps")
    return len(alpha_bar)


def _grid(alpha_bar: Tensor, t: list[int], end: float) -> Grid:
    if t[0] >= len(alpha_bar):
        raise ValueError(f"steps={len(t)}: this grid would visit t={t[0]}, past the last, {len(alpha_bar) - 1}")
    index = torch.tensor(t, device=alpha_bar.device)
    return Grid(index, torch.cat([alpha_bar[index], alpha_bar.new_tensor([end])]))
