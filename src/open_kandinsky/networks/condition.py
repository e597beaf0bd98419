"""The decoder's conditions: from embeddings to context tokens and a summand of the time embedding."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class Conditioned(NamedTuple):
    """The tokens that attention reads, and a summand of the time embedding."""

    tokens: Float[Tensor, "b n c"]
    emb: Float[Tensor, "b e"]


class TextImageCondition(nn.Module):
    """Kandinsky 2.1: ten tokens of the image embedding, then the caption's states; both pooled into the embedding."""

    reads = ("image_emb", "text_tokens", "text_emb")  # fields of a batch, as `forward` takes them

    def __init__(
        self, *, image_dim: int, text_width: int, text_dim: int, image_tokens: int, context: int, emb: int
    ) -> None:
        super().__init__()
        self.count = image_tokens
        self.image_tokens = nn.Linear(image_dim, image_tokens * context)
        self.text_tokens = nn.Linear(text_width, context)
        self.image_emb = nn.Linear(image_dim, emb)
        self.text_emb = nn.Sequential(nn.Linear(text_dim, emb), nn.LayerNorm(emb))

    def forward(
        self,
        image_emb: Float[Tensor, "b d"],
        text_tokens: Float[Tensor, "b n w"],
        text_emb: Float[Tensor, "b e"],
    ) -> Conditioned:
        image_tokens = rearrange(self.image_tokens(image_emb), "b (n c) -> b n c", n=self.count)
        tokens = torch.cat([image_tokens, self.text_tokens(text_tokens)], dim=1)
        return Conditioned(tokens, self.image_emb(image_emb) + self.text_emb(text_emb))


class ImageCondition(nn.Module):
    """Kandinsky 2.2: the image embedding alone; the caption reaches the picture through the prior only."""

    reads = ("image_emb",)

    def __init__(self, *, image_dim: int, image_tokens: int, context: int, emb: int) -> None:
        super().__init__()
        self.count = image_tokens
        self.image_tokens = nn.Linear(image_dim, image_tokens * context)
        self.norm_tokens = nn.LayerNorm(context)
        self.image_emb = nn.Sequential(nn.Linear(image_dim, emb), nn.LayerNorm(emb))

    def forward(
        self, image_emb: Float[Tensor, "b d"], text_tokens: Tensor | None = None, text_emb: Tensor | None = None
    ) -> Conditioned:
        """The text is ignored; it is an argument so that all conditions are called alike."""
        image_tokens = rearrange(self.image_tokens(image_emb), "b (n c) -> b n c", n=self.count)
        return Conditioned(self.norm_tokens(image_tokens), self.image_emb(image_emb))
