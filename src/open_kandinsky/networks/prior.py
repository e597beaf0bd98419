"""Priors: from a caption's CLIP states to its image's CLIP embedding. Four, behind one pair of calls:

prefix = prior.prefix(text_tokens, text_emb, text_mask)      what depends on the caption alone
x_0    = prior(x_t, t, prefix)                               standardised: `prior.standardise.inverse` undoes it
"""

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from open_kandinsky.networks.attention import KV, CausalAttention
from open_kandinsky.networks.blocks import Standardise, TimeEmbedding


class Prefix(NamedTuple):
    """Keys and values of the caption's positions in every layer, and which of them are words."""

    kv: tuple[KV, ...]
    mask: Bool[Tensor, "b n"]


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = CausalAttention(width=width, heads=heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor, past: KV | None) -> tuple[Tensor, KV]:
        attended, kv = self.attention(self.norm_attention(x), mask, past)
        x = x + attended
        return x + self.mlp(self.norm_mlp(x)), kv


class DiffusionPrior(nn.Module):
    """Kandinsky's: a causal transformer over [caption states, caption embedding, time, x_t, readout], predicting x_0.

    Causal, so all positions up to the caption embedding are the same at every step: `prefix` runs them once, and a
    step runs the last three.
    """

    entries = ("prefix",)

    def __init__(
        self, *, image_dim: int, text_dim: int, text_width: int, text_length: int, width: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        self.standardise = Standardise(image_dim)
        self.text_tokens = nn.Linear(text_width, width)
        self.text_emb = nn.Linear(text_dim, width)
        self.time = TimeEmbedding(width=width, emb=width)
        self.x_t = nn.Linear(image_dim, width)
        self.readout = nn.Parameter(0.01 * torch.randn(width))
        self.position = nn.Parameter(0.01 * torch.randn(text_length + 4, width))
        self.layers = nn.ModuleList(Layer(width=width, heads=heads) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width)
        self.out = nn.Linear(width, image_dim)

    def prefix(
        self,
        text_tokens: Float[Tensor, "b n w"],
        text_emb: Float[Tensor, "b d"],
        text_mask: Bool[Tensor, "b n"],  # True on words; padding is ignored
    ) -> Prefix:
        x = torch.cat([self.text_tokens(text_tokens), self.text_emb(text_emb)[:, None]], dim=1) + self.position[:-3]
        mask = torch.cat([text_mask, text_mask.new_ones(len(text_mask), 1)], dim=1)
        _, kv = self._run(x, rearrange(mask, "b m -> b 1 1 m") & _causal(x), past=None)
        return Prefix(kv, mask)

    def forward(self, x_t: Float[Tensor, "b d"], t: Int[Tensor, "b"], prefix: Prefix) -> Float[Tensor, "b d"]:
        x = torch.stack([self.time(t), self.x_t(x_t), self.readout.expand(len(x_t), -1)], dim=1) + self.position[-3:]
        of_prefix = repeat(prefix.mask, "b m -> b 1 n m", n=3)
        mask = torch.cat([of_prefix, _causal(x).expand(len(x), 1, 3, 3)], dim=3)
        x, _ = self._run(x, mask, prefix.kv)
        return self.out(self.norm_out(x[:, -1]))

    def units(self) -> list[nn.Module]:
        return list(self.layers)

    def extra_modules(self) -> list[nn.Module]:
        return []

    def _run(self, x: Tensor, mask: Tensor, past: tuple[KV, ...] | None) -> tuple[Tensor, tuple[KV, ...]]:
        kv = []
        for layer, past_kv in zip(self.layers, past or [None] * len(self.layers), strict=True):
            x, layer_kv = layer(x, mask, past_kv)
            kv.append(layer_kv)
        return x, tuple(kv)


def _causal(x: Float[Tensor, "b n c"]) -> Bool[Tensor, "n n"]:
    n = x.shape[1]
    return torch.ones(n, n, dtype=torch.bool, device=x.device).tril()


class LinearPrior(nn.Module):
    """One linear map of the caption's embedding: the prior of the paper's best FID (8.03)."""

    entries = ("prefix",)

    def __init__(self, *, image_dim: int, text_dim: int) -> None:
        super().__init__()
        self.standardise = Standardise(image_dim)
        self.map = nn.Linear(text_dim, image_dim)

    def units(self) -> list[nn.Module]:
        return []

    def extra_modules(self) -> list[nn.Module]:
        return []

    def prefix(self, text_tokens: Tensor, text_emb: Float[Tensor, "b d"], text_mask: Tensor) -> Float[Tensor, "b e"]:
        return self.map(text_emb)

    def forward(self, x_t: Tensor, t: Tensor, prefix: Float[Tensor, "b e"]) -> Float[Tensor, "b e"]:
        """Does not depend on t: for every sampler, one step gives the same as many."""
        return prefix


class ResidualPrior(nn.Module):
    """Residual perceptrons over the caption's embedding; the paper's has 18 and gives no width."""

    entries = ("prefix",)

    def __init__(self, *, image_dim: int, text_dim: int, width: int, blocks: int) -> None:
        super().__init__()
        self.standardise = Standardise(image_dim)
        self.into = nn.Linear(text_dim, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.out = nn.Linear(width, image_dim)

    def units(self) -> list[nn.Module]:
        return list(self.blocks)

    def extra_modules(self) -> list[nn.Module]:
        return []

    def prefix(self, text_tokens: Tensor, text_emb: Float[Tensor, "b d"], text_mask: Tensor) -> Float[Tensor, "b e"]:
        x = self.into(text_emb)
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)

    def forward(self, x_t: Tensor, t: Tensor, prefix: Float[Tensor, "b e"]) -> Float[Tensor, "b e"]:
        return prefix


class NoPrior(nn.Module):
    """The caption's embedding itself in place of the image's: the paper's row "no prior". Nothing to train."""

    def __init__(self, *, image_dim: int) -> None:
        super().__init__()
        self.standardise = Standardise(image_dim)

    def prefix(self, text_tokens: Tensor, text_emb: Float[Tensor, "b d"], text_mask: Tensor) -> Float[Tensor, "b d"]:
        return self.standardise(text_emb)

    def forward(self, x_t: Tensor, t: Tensor, prefix: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return prefix
