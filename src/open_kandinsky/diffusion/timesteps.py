"""Which timesteps a sampler visits. A grid is a value: the steps, descending, and alpha_bar at each and at the end."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_kandinsky.core.errors import UserError


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


def last(grid: Grid, n: int) -> Grid:
    """The end of a grid: its last n steps, 1 to all of them."""
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
