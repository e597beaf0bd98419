"""Residual blocks of the U-Net (scaled and shifted by an embedding) and of MoVQ (normed by its latent)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

GROUPS = 32  # of every GroupNorm in Kandinsky: widths are its multiples


def zeroed(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Start at 0, so that a block starts as its skip."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def shortcut(channels_in: int, channels_out: int) -> nn.Module:
    return nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)


def swish(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Of a tensor that no one else reads: in its place, where nothing is learned. A map of MoVQ's is 67 MB."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def joined(skip: Float[Tensor, "..."], h: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The sum: in the place of h, which no one else reads, where nothing is learned."""
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
        """`emb` has been through its activation already, once for all blocks."""
        h = self.conv_in(self.resample(swish(self.norm_in(x))))
        scale, shift = rearrange(self.film(emb), "b (two c) -> two b c 1 1", two=2)
        h = self.conv_out(swish(self.norm_out(h) * (1 + scale) + shift))
        return joined(self.skip(self.resample(x)), h)


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


Norm = Callable[[int], nn.Module]  # GroupNorm in the encoder, SpatialNorm in the decoder, which is also given z


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
        return joined(self.skip(x), self.conv_out(swish(self.norm_out(h, *z))))


class Upsample(nn.Module):
    """Nearest neighbour, twice the sides."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
        # On a GPU autocast would have interpolate give float32, which all later blocks would then add to.
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if x.device.type == "cpu" else doubled(x)


def doubled(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
    """The same of any type, in channels_last; compiled too, its gradients are added up in a fixed order."""
    return rearrange(repeat(x, "b c h w -> b (h 2) (w 2) c"), "b h w c -> b c h w")


class PadEnd(nn.Module):
    """One row and one column of zeros at the end: the asymmetric padding of VQGAN's strided convolution."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h+1 w+1"]:
        return F.pad(x, (0, 1, 0, 1))
