"""The decoder's multilingual text encoder, M-CLIP, by transformers."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor, nn

from open_kandinsky.networks.clip import LongTexts, Text


class MultilingualClip(nn.Module):
    """M-CLIP: XLM-RoBERTa, and the mean of its states projected into CLIP's space (Carlsson et al. 2022).

    Kandinsky 2.1's decoder reads all states, those of padding included. `transformer` holds XLMRobertaConfig's numbers,
    `tokenizer` is a folder of transformers'.
    """

    def __init__(self, *, dim: int, length: int, transformer: Mapping[str, Any], tokenizer: str) -> None:
        from transformers import XLMRobertaConfig, XLMRobertaModel

        super().__init__()
        self.length, self.tokenizer_folder = length, tokenizer
        self.long = LongTexts(length)
        self.transformer: Any = XLMRobertaModel(XLMRobertaConfig(**transformer))
        self.project = nn.Linear(transformer["hidden_size"], dim)

    @cached_property
    def tokenizer(self) -> Any:
        """Loaded on first use, without running code from its folder."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.tokenizer_folder, local_files_only=True, trust_remote_code=False)

    def encode_text(self, captions: Sequence[str]) -> Text:
        """A caption that is too long loses its tail, keeps its end mark, and is counted."""
        # A token has at least one letter, but for start, end, and a mark before the first word.
        perhaps = [caption for caption in captions if len(caption) + 3 > self.length]
        self.long.add([caption for caption in perhaps if len(self.tokenizer(caption).input_ids) > self.length])
        padded = self.tokenizer(
            list(captions), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        device = self.project.weight.device
        return self.encode_tokens(padded.input_ids.to(device), padded.attention_mask.bool().to(device))

    def encode_tokens(self, token: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Text:
        """`mask` is False on padding."""
        tokens = self.transformer(input_ids=token, attention_mask=mask.long()).last_hidden_state
        words = rearrange(mask, "b n -> b n 1").to(tokens.dtype)
        mean = (tokens * words).sum(1) / words.sum(1)
        return Text(tokens, self.project(mean), mask)

    def null_text(self) -> Text:
        """What guidance extrapolates from: the empty caption."""
        return self.encode_text([""])
