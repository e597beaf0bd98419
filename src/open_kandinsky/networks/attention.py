"""Attention over feature maps and over the prior's sequence. Keys and values are named tuples, passed as arguments."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from open_kandinsky.networks.blocks import GROUPS, Norm, zeroed


class KV(NamedTuple):
    """Keys and values of one layer."""

    k: Float[Tensor, "b heads n d"]
    v: Float[Tensor, "b heads n d"]


def _heads(x: Float[Tensor, "b n c"], parts: int, heads: int) -> Float[Tensor, "{parts} b {heads} n d"]:
    return rearrange(x, "b n (parts heads d) -> parts b heads n d", parts=parts, heads=heads)


def _append(first: KV, second: KV) -> KV:
    return KV(*(torch.cat(pair, dim=2) for pair in zip(first, second, strict=True)))


class ContextAttention(nn.Module):
    """Self-attention of a feature map with the context's keys in front of its own: one softmax over both (GLIDE's)."""

    def __init__(self, *, channels: int, head_channels: int, context: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-5)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.context_kv = nn.Linear(context, 2 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def context(self, tokens: Float[Tensor, "b n c"]) -> KV:
        """The context's keys and values: the same at every step of sampling."""
        return KV(*_heads(self.context_kv(tokens), 2, self.heads))

    def forward(self, x: Float[Tensor, "b c h w"], context: KV) -> Float[Tensor, "b c h w"]:
        q, *own = _heads(self.qkv(rearrange(self.norm(x), "b c h w -> b (h w) c")), 3, self.heads)
        k, v = _append(context, KV(*own))
        attended = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype))
        out = self.out(rearrange(attended, "b heads n d -> b n (heads d)"))
        return x + rearrange(out, "b (h w) c -> b c h w", h=x.shape[2])


class PixelAttention(nn.Module):
    """MoVQ's: one head over all channels."""

    def __init__(self, *, channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, "b c h w"], *z: Tensor) -> Float[Tensor, "b c h w"]:
        q, k, v = _heads(self.qkv(rearrange(self.norm(x, *z), "b c h w -> b (h w) c")), 3, heads=1)
        out = self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b 1 n c -> b n c"))
        return x + rearrange(out, "b (h w) c -> b c h w", h=x.shape[2])


class CausalAttention(nn.Module):
    """Self-attention of the prior's sequence, whose beginning may have been computed before."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "b 1 n m"], past: KV | None
    ) -> tuple[Float[Tensor, "b n c"], KV]:
        """`mask` is True where a position attends, over `past` and then x. Also returns x's keys and values."""
        q, *both = _heads(self.qkv(x), 3, self.heads)
        # Contiguous for SDPA; returning views makes the compiler copy all of qkv.
        own = KV(*(x.contiguous() for x in both))
        attended = (
            F.scaled_dot_product_attention(q, *own, attn_mask=mask) if past is None else _over(past, own, q, mask)
        )
        return self.out(rearrange(attended, "b heads n d -> b n (heads d)")), own


def _over(
    past: KV, own: KV, q: Float[Tensor, "b heads n d"], mask: Bool[Tensor, "b 1 n m"]
) -> Float[Tensor, "b heads n d"]:
    """One softmax over both, without a copy of `past`, which is by far the longer."""
    scores = torch.cat([q @ kv.k.mT for kv in (past, own)], dim=3) * q.shape[3] ** -0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(3).to(q.dtype)
    n = past.k.shape[2]  # slices: torch 2.11 to 2.15 compile `split` into wrong gradients
    return weights[..., :n] @ past.v + weights[..., n:] @ own.v
