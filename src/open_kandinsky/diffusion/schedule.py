"""Discrete variance-preserving noise schedules: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.

t is an integer in [0, T); alpha_bar falls from about 1 (clean) to about 0 (noise). Tables are float64: float32
loses the noise of the first steps, bfloat16 that of many more.
"""

import math

import torch
from jaxtyping import Float64
from torch import Tensor


def linear_beta(*, T: int, beta_min: float, beta_max: float) -> Float64[Tensor, "T"]:
    """Betas evenly spaced in [beta_min, beta_max] (Ho et al. 2020, section 4)."""
    beta = torch.arange(T, dtype=torch.float64) * ((beta_max - beta_min) / (T - 1)) + beta_min
    beta[-1] = beta_max  # the sum above may miss the end by one rounding
    return beta


def cosine_beta(*, T: int, s: float, beta_max: float) -> Float64[Tensor, "T"]:
    """Betas whose alpha_bar is cos^2 of a quarter turn, clipped at beta_max (Nichol & Dhariwal 2021, eq. 17)."""

    def f(t: int) -> float:
        return math.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2  # libm's cosine: torch's differs in the last bit

    return torch.tensor([min(1 - f(t + 1) / f(t), beta_max) for t in range(T)], dtype=torch.float64)


def linear(*, T: int, beta_min: float, beta_max: float) -> Float64[Tensor, "T"]:
    """alpha_bar of Kandinsky's decoder: linear in beta, not in sqrt(beta) as Stable Diffusion's."""
    return (1 - linear_beta(T=T, beta_min=beta_min, beta_max=beta_max)).cumprod(0)


def cosine(*, T: int, s: float, beta_max: float) -> Float64[Tensor, "T"]:
    """alpha_bar of Kandinsky's prior."""
    return (1 - cosine_beta(T=T, s=s, beta_max=beta_max)).cumprod(0)
