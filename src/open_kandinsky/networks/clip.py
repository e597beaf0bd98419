"""CLIP by open_clip, in training as in sampling.

The text path is CLIP's own, final LayerNorm included (the official prior's training forgot it). Embeddings are used as
projected, not normalised to length 1, everywhere but in the contrastive loss.
"""

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import open_clip
import torch
from jaxtyping import Bool, Float, Int
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn


class Text(NamedTuple):
    """A batch of encoded captions."""

    tokens: Float[Tensor, "b n w"]  # states of every position after the final norm
    emb: Float[Tensor, "b d"]  # the end-of-text state, projected
    mask: Bool[Tensor, "b n"]  # True on words, start and end


class LongTexts:
    """Counts the captions that are too long for a text encoder, and warns of the first one."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.count = tokens, 0

    def add(self, texts: Sequence[str]) -> None:
        if texts and not self.count:
            first = textwrap.shorten(texts[0][:200], 60, placeholder=" ...")
            text = f"longer than {self.tokens} tokens, its end is not read (of such texts the first is told)"
            warnings.warn(f"{text}: {first!r}", stacklevel=3)
        self.count += len(texts)


class Clip(nn.Module):
    """open_clip's two-tower model, with its tokenizer."""

    entries = ("encode_image", "encode_tokens")

    def __init__(self, *, dim: int, vision: Mapping[str, Any], text: Mapping[str, Any], quick_gelu: bool) -> None:
        super().__init__()
        towers: Any = (dict(vision), dict(text))  # open_clip makes its own dataclasses of them
        self.model: Any = open_clip.CLIP(dim, *towers, quick_gelu=quick_gelu)
        self.length: int = text["context_length"]
        self.long = LongTexts(self.length - 2)  # without start and end
        self.tokenizer = SimpleTokenizer(context_length=self.length)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of `clip_pixels`."""
        size = self.model.visual.image_size
        return size if isinstance(size, tuple) else (size, size)

    def units(self) -> list[nn.Module]:
        """The residual blocks of both towers."""
        return [*self.model.visual.transformer.resblocks, *self.model.transformer.resblocks]

    def extra_modules(self) -> list[nn.Module]:
        return []

    def tokenize(self, captions: Sequence[str]) -> Int[Tensor, "b n"]:
        """Start, words, end, zeros. A caption that is too long loses its tail, keeps its end mark, and is counted."""
        self.long.add(self.cut(captions))
        return self.tokenizer(list(captions)).to(self.model.positional_embedding.device)

    def cut(self, captions: Sequence[str]) -> list[str]:
        """The captions that are too long to be read to their end."""
        room = self.length - 2  # a token has one letter at least
        return [text for text in captions if len(text) > room and len(self.tokenizer.encode(text)) > room]

    def encode_image(self, clip_pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        return self.model.encode_image(clip_pixels)

    def encode_text(self, captions: Sequence[str]) -> Text:
        return self.encode_tokens(self.tokenize(captions))

    def encode_tokens(self, token: Int[Tensor, "b n"]) -> Text:
        model = self.model
        x = model.token_embedding(token) + model.positional_embedding
        tokens = model.ln_final(model.transformer(x, attn_mask=model.attn_mask.to(x.dtype)))
        end = token.argmax(dim=1)  # the end-of-text token has the greatest number
        emb = tokens[torch.arange(len(token)), end] @ model.text_projection
        position = torch.arange(token.shape[1], device=token.device)
        return Text(tokens, emb, position <= end[:, None])

    def null_text(self) -> Text:
        """What guidance extrapolates from: the empty caption."""
        return self.encode_text([""])

    def null_image(self) -> Float[Tensor, "1 d"]:
        """What guidance extrapolates from: the all-zero image after normalisation, CLIP's mean colour."""
        return self.encode_image(self.model.positional_embedding.new_zeros(1, 3, *self.image_size))
