"""Embeddings of time, and the standardisation of what a diffusion model models."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def sinusoid(t: Int[Tensor, "b"] | Float[Tensor, "b"], width: int) -> Float[Tensor, "b width"]:
    """cos and then sin of t at width/2 frequencies from 1 down to nearly 1/10000 (Vaswani et al. 2017, as in GLIDE)."""
    half = width // 2
    # The official order of operations: (-log / half) first moves a U-Net's output by 1e-6 where half is no power of 2.
    frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    phase = t[:, None].float() * frequency
    return torch.cat([phase.cos(), phase.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """Sinusoid and a two-layer perceptron."""

    def __init__(self, *, width: int, emb: int) -> None:
        super().__init__()
        self.width = width
        self.mlp = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))

    def forward(self, t: Int[Tensor, "b"]) -> Float[Tensor, "b emb"]:
        return self.mlp(sinusoid(t, self.width).to(next(self.parameters()).dtype))


class Standardise(nn.Module):
    """(x - mean) / std along the channels (dimension 1), with statistics of the training set that travel as buffers.

    The identity until `set` is called: so is Kandinsky's latent scale, 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def set(self, mean: Float[Tensor, "c"], std: Float[Tensor, "c"]) -> None:
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, x: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c ..."]:
        return (x - self._like(self.mean, x)) / self._like(self.std, x)

    def inverse(self, x: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c ..."]:
        return x * self._like(self.std, x) + self._like(self.mean, x)

    def _like(self, statistic: Tensor, x: Tensor) -> Tensor:
        return statistic.to(x).reshape(-1, *[1] * (x.ndim - 2))
