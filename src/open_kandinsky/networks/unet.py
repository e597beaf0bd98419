"""The decoder's U-Net: noisy latent, time and context to noise (and a variance), as in Kandinsky 2.1 and 2.2."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from open_kandinsky.networks.attention import KV, ContextAttention
from open_kandinsky.networks.blocks import GROUPS, FilmBlock, Standardise, TimeEmbedding, Upsample, swish, zeroed


class Context(NamedTuple):
    """All that depends on the condition alone: keys and values of each attention, a summand of the time embedding."""

    kv: tuple[KV, ...]
    emb: Float[Tensor, "b e"]


class UNetBlock(nn.Module):
    """A residual block, an attention (or none) and a change of resolution (or none)."""

    def __init__(self, res: FilmBlock, attention: ContextAttention | None, resample: FilmBlock | None = None) -> None:
        super().__init__()
        self.res, self.attention, self.resample = res, attention, resample

    def forward(self, x: Tensor, emb: Tensor, kv: KV | None) -> Tensor:
        """`kv` where there is an attention."""
        x = self.res(x, emb)
        if self.attention is not None:
            x = self.attention(x, kv)
        return x if self.resample is None else self.resample(x, emb)


class UNet(nn.Module):
    """An ADM-style U-Net whose attention reads `condition`'s tokens in front of its own.

    `multipliers` gives the width of each level in units of `channels`; a level has `blocks` residual blocks on the way
    down, one more on the way up, and attention in each if it is one of `attention_levels`.
    """

    entries = ("context",)

    def __init__(
        self,
        *,
        condition: Any,  # a module, from the fields of a batch that it `reads` to Conditioned(tokens, emb)
        in_channels: int,  # 4, or 9 for inpainting: latent, known latent, mask
        out_channels: int,
        latent_channels: int,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        attention_levels: Sequence[int],
        head_channels: int,
        context: int,
        emb: int,
    ) -> None:
        super().__init__()
        self.standardise = Standardise(latent_channels)
        self.factor = 2 ** (len(multipliers) - 1)  # sides of a latent are its multiples
        self.condition = condition
        self.reads: tuple[str, ...] = condition.reads  # the arguments of `context`
        self.time = TimeEmbedding(width=channels, emb=emb)
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        widths = [channels * m for m in multipliers]
        last = len(widths) - 1

        def res(c_in: int, c_out: int, resample: nn.Module | None = None) -> FilmBlock:
            return FilmBlock(channels_in=c_in, channels_out=c_out, emb=emb, resample=resample)

        def attention(width: int) -> ContextAttention:
            return ContextAttention(channels=width, head_channels=head_channels, context=context)

        self.down, skips = nn.ModuleList(), [channels]
        for level, width in enumerate(widths):
            attend = level in attention_levels
            for c_in in [skips[-1]] + [width] * (blocks - 1):
                self.down.append(UNetBlock(res(c_in, width), attention(width) if attend else None))
                skips.append(width)
            if level < last:
                self.down.append(UNetBlock(res(width, width, nn.AvgPool2d(2)), None))
                skips.append(width)

        self.middle = nn.ModuleList(
            [
                UNetBlock(res(widths[-1], widths[-1]), attention(widths[-1])),
                UNetBlock(res(widths[-1], widths[-1]), None),
            ]
        )

        self.up = nn.ModuleList()
        for level, (before, width) in enumerate(pairwise([*widths, widths[-1]][::-1])):
            attend, is_last = last - level in attention_levels, level == last
            for i, c_in in enumerate([before] + [width] * blocks):
                up = res(width, width, Upsample()) if i == blocks and not is_last else None
                self.up.append(UNetBlock(res(c_in + skips.pop(), width), attention(width) if attend else None, up))

        self.norm_out = nn.GroupNorm(GROUPS, channels, eps=1e-5)
        self.conv_out = zeroed(nn.Conv2d(channels, out_channels, 3, padding=1))

    def units(self) -> list[nn.Module]:
        """The blocks in the order of `forward`."""
        return [*self.down, *self.middle, *self.up]

    def attentions(self) -> Iterator[ContextAttention]:
        for block in self.units():
            if isinstance(block.attention, ContextAttention):
                yield block.attention

    def extra_modules(self) -> list[nn.Module]:
        """The layers that read the context: `context` runs them, `forward` does not."""
        return [attention.context_kv for attention in self.attentions()]

    def context(
        self, image_emb: Float[Tensor, "b d"], text_tokens: Tensor | None = None, text_emb: Tensor | None = None
    ) -> Context:
        """Once a batch in training, once an image in sampling."""
        tokens, emb = self.condition(image_emb, text_tokens, text_emb)
        return Context(tuple(attention.context(tokens) for attention in self.attentions()), emb)

    def forward(
        self, x_t: Float[Tensor, "b c_in h w"], t: Int[Tensor, "b"], context: Context
    ) -> Float[Tensor, "b c_out h w"]:
        """Sides are multiples of `factor`."""
        emb = F.silu(self.time(t) + context.emb)
        kv = iter(context.kv)

        def run(block: Any, h: Tensor) -> Tensor:
            return block(h, emb, None if block.attention is None else next(kv))

        h = self.conv_in(x_t)
        skips = [h]
        for block in self.down:
            h = run(block, h)
            skips.append(h)
        for block in self.middle:
            h = run(block, h)
        for block in self.up:
            h = run(block, torch.cat([h, skips.pop()], dim=1))
        return self.conv_out(swish(self.norm_out(h))).contiguous()
