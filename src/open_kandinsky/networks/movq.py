"""MoVQ, the autoencoder: VQGAN's encoder and codebook, and a decoder normed by the latent it decodes."""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from open_kandinsky.networks.attention import PixelAttention
from open_kandinsky.networks.blocks import GROUPS, ConvBlock, Norm, PadEnd, SpatialNorm, Upsample, swish
from open_kandinsky.networks.quantizer import Codebook


class Decoded(NamedTuple):
    """Pixels and the last convolution's input, from which its weight gradient can be recomputed."""

    pixels: Float[Tensor, "b 3 h w"]
    features: Float[Tensor, "b c h w"]


class Reconstruction(NamedTuple):
    """The outputs that training needs; `z` is the latent before the codebook."""

    pixels: Float[Tensor, "b 3 h w"]
    features: Float[Tensor, "b c h w"]
    z: Float[Tensor, "b cz zh zw"]
    index: Int[Tensor, "b zh zw"]
    codebook_loss: Float[Tensor, ""]


class Level(nn.Module):
    """Blocks of one resolution in sequence; the decoder's are also called with z."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, h: Float[Tensor, "b c h w"], *z: Tensor) -> Float[Tensor, "b c_out h w"]:
        for block in self.blocks:
            h = block(h, *z)
        return h


def _level(c_in: int, c_out: int, *, blocks: int, attend: bool, norm: Norm) -> Level:
    modules: list[nn.Module] = []
    for c in [c_in] + [c_out] * (blocks - 1):
        modules.append(ConvBlock(channels_in=c, channels_out=c_out, norm=norm))
        if attend:
            modules.append(PixelAttention(channels=c_out, norm=norm))
    return Level(modules)


def _middle(c: int, norm: Norm) -> Level:
    block = partial(ConvBlock, channels_in=c, channels_out=c, norm=norm)
    return Level([block(), PixelAttention(channels=c, norm=norm), block()])


class Encoder(nn.Module):
    """Pixels to latent, halved at every level but the last."""

    def __init__(
        self,
        *,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        attention_levels: Sequence[int],
        latent_channels: int,
    ) -> None:
        super().__init__()
        norm = partial(nn.GroupNorm, GROUPS, eps=1e-6)
        widths = [channels * m for m in multipliers]
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.levels = nn.ModuleList(
            _level(a, b, blocks=blocks, attend=i in attention_levels, norm=norm)
            for i, (a, b) in enumerate(pairwise([channels, *widths]))
        )
        self.halving = nn.ModuleList(nn.Sequential(PadEnd(), nn.Conv2d(w, w, 3, stride=2)) for w in widths[:-1])
        self.middle = _middle(widths[-1], norm)
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], latent_channels, 3, padding=1)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c zh zw"]:
        h = self.conv_in(pixels)
        for i, level in enumerate(self.levels):
            h = level(h if i == 0 else self.halving[i - 1](h))
        return self.conv_out(swish(self.norm_out(self.middle(h))))


class Decoder(nn.Module):
    """Latent to pixels; every norm reads the latent before `post_quant`."""

    def __init__(
        self,
        *,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        attention_levels: Sequence[int],
        latent_channels: int,
    ) -> None:
        super().__init__()
        norm = partial(SpatialNorm, latent_channels=latent_channels)
        widths = [channels * m for m in multipliers][::-1]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(latent_channels, widths[0], 3, padding=1)
        self.middle = _middle(widths[0], norm)
        self.levels = nn.ModuleList(
            _level(a, b, blocks=blocks + 1, attend=last - i in attention_levels, norm=norm)
            for i, (a, b) in enumerate(pairwise([widths[0], *widths]))
        )
        self.doubling = nn.ModuleList(nn.Sequential(Upsample(), nn.Conv2d(w, w, 3, padding=1)) for w in widths[:-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, h: Float[Tensor, "b c zh zw"], z: Float[Tensor, "b c zh zw"]) -> Decoded:
        h = self.middle(self.conv_in(h), z)
        for i, level in enumerate(self.levels):
            h = level(h if i == 0 else self.doubling[i - 1](h), z)
        features = swish(self.norm_out(h, z))
        return Decoded(self.conv_out(features), features)


class MoVQ(nn.Module):
    """Pixels in [-1, 1] to a latent z of a few channels, and back.

    The paper quantises the latents of diffusion, the released code does not: `quantise_latents` says which, for the
    latents that the decoder learns from and for those that it draws. The autoencoder's own training always does.
    """

    entries = ("encode", "decode", "without_codebook", "through_codebook")

    def __init__(
        self,
        *,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        attention_levels: Sequence[int],
        latent_channels: int,
        codes: int,
        beta: float,
        quantise_latents: bool,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "multipliers": multipliers, "blocks": blocks, "latent_channels": latent_channels}
        self.encoder = Encoder(**sizes, attention_levels=attention_levels)
        self.decoder = Decoder(**sizes, attention_levels=attention_levels)
        self.codebook = Codebook(codes=codes, channels=latent_channels, beta=beta)
        self.quant = nn.Conv2d(latent_channels, latent_channels, 1)
        self.post_quant = nn.Conv2d(latent_channels, latent_channels, 1)
        self.quantise_latents = quantise_latents
        self.factor = 2 ** (len(multipliers) - 1)  # pixels of a side per latent

    def units(self) -> list[nn.Module]:
        """The residual blocks and attentions of every level."""
        return [block for level in self.modules() if isinstance(level, Level) for block in level.blocks]

    def extra_modules(self) -> list[nn.Module]:
        return []

    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c zh zw"]:
        z = self.quant(self.encoder(pixels))
        return self.codebook.quantise(z) if self.quantise_latents else z

    def decode(self, z: Float[Tensor, "b c zh zw"]) -> Float[Tensor, "b 3 h w"]:
        z = self.codebook.quantise(z) if self.quantise_latents else z
        return self.decoder(self.post_quant(z), z).pixels

    def through_codebook(self, z: Float[Tensor, "b c zh zw"]) -> Float[Tensor, "b 3 h w"]:
        """`decode` of the nearest codes, whatever `quantise_latents` says."""
        z = self.codebook.quantise(z)
        return self.decoder(self.post_quant(z), z).pixels

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Reconstruction:
        """Pixels through the codebook, with its loss."""
        z = self.quant(self.encoder(x))
        z_q, index, loss = self.codebook(z)
        pixels, features = self.decoder(self.post_quant(z_q), z_q)
        return Reconstruction(pixels, features, z, index, loss)

    def without_codebook(self, x: Float[Tensor, "b 3 h w"]) -> Reconstruction:
        """As `forward` without the codebook: for the first steps of training, and to fill it."""
        z = self.quant(self.encoder(x))
        pixels, features = self.decoder(self.post_quant(z), z)
        return Reconstruction(pixels, features, z, self.codebook.nearest(z), z.new_zeros(()))
