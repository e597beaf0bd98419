"""Layers that several networks use: residual blocks, the time embedding, and standardisation.

The U-Net's residual blocks are scaled and shifted by an embedding, those of MoVQ's decoder are normed by its latent.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

GROUPS = 32  # of every GroupNorm in Kandinsky: widths are its multiples


def zeroed(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Initialise a layer with 0, so that its block starts as its skip."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def shortcut(channels_in: int, channels_out: int) -> nn.Module:
    return nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)


def swish(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """SiLU, in place when gradients are off: `x` must not be used again. A feature map of MoVQ's is 67 MB."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def add_skip(skip: Float[Tensor, "..."], h: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """skip + h, in place of h when gradients are off: `h` must not be used again."""
    return skip + h if torch.is_grad_enabled() or skip.dtype != h.dtype else h.add_(skip)


class FilmBlock(nn.Module):
    """Two 3x3 convolutions whose second norm is scaled and shifted by the embedding (ADM's, Dhariwal & Nichol 2021).

    `resample` acts between the first norm and convolution, and on the skip.
    """

    def __init__(self, *, channels_in: int, channels_out: int, emb: int, resample: nn.Module | None = None) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(GROUPS, channels_in, eps=1e-5)
        self.resample = nn.Identity() if resample is None else resample
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.film = nn.Linear(emb, 2 * channels_out)
        self.norm_out = nn.GroupNorm(GROUPS, channels_out, eps=1e-5)
        self.conv_out = zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.skip = shortcut(channels_in, channels_out)

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b c_out h_out w_out"]:
        """`emb` has been through its activation, once for all blocks."""
        h = self.conv_in(self.resample(swish(self.norm_in(x))))
        scale, shift = rearrange(self.film(emb), "b (two c) -> two b c 1 1", two=2)
        h = self.conv_out(swish(self.norm_out(h) * (1 + scale) + shift))
        return add_skip(self.skip(self.resample(x)), h)


class SpatialNorm(nn.Module):
    """GroupNorm whose scale and shift are 1x1 convolutions of the quantised latent (MoVQ, Zheng et al. 2022, eq. 5)."""

    def __init__(self, channels: int, *, latent_channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.scale = nn.Conv2d(latent_channels, channels, 1)
        self.shift = nn.Conv2d(latent_channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], z: Float[Tensor, "b z zh zw"]) -> Float[Tensor, "b c h w"]:
        # A 1x1 convolution commutes with nearest resizing, which is a broadcast over the squares that a latent covers.
        scale, shift = (rearrange(conv(z), "b c zh zw -> b c zh 1 zw 1") for conv in (self.scale, self.shift))
        x = rearrange(self.norm(x), "b c (zh h) (zw w) -> b c zh h zw w", zh=z.shape[2], zw=z.shape[3])
        return rearrange(torch.addcmul(shift, x, scale), "b c zh h zw w -> b c (zh h) (zw w)")


Norm = Callable[[int], nn.Module]  # GroupNorm in the encoder, SpatialNorm in the decoder, which is also called with z


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each after a norm and swish."""

    def __init__(self, *, channels_in: int, channels_out: int, norm: Norm) -> None:
        super().__init__()
        self.norm_in = norm(channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm_out = norm(channels_out)
        self.conv_out = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = shortcut(channels_in, channels_out)

    def forward(self, x: Float[Tensor, "b c h w"], *z: Tensor) -> Float[Tensor, "b c_out h w"]:
        h = self.conv_in(swish(self.norm_in(x, *z)))
        return add_skip(self.skip(x), self.conv_out(swish(self.norm_out(h, *z))))


class Upsample(nn.Module):
    """Nearest neighbour, twice the sides."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
        # On a GPU autocast makes interpolate return float32, which would stay so in all later blocks.
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if x.device.type == "cpu" else doubled(x)


def doubled(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
    """Upsample for any dtype, in channels_last; its gradients, also compiled, are summed in a fixed order."""
    return rearrange(repeat(x, "b c h w -> b (h 2) (w 2) c"), "b h w c -> b c h w")


class PadEnd(nn.Module):
    """One row and one column of zeros at the end: the asymmetric padding of VQGAN's strided convolution."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h+1 w+1"]:
        return F.pad(x, (0, 1, 0, 1))


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
    """(x - mean) / std along the channels (dimension 1), with statistics of the training set as buffers.

    It is the identity until `set` is called, as it is for Kandinsky's latents.
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
