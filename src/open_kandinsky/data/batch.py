"""What a batch is: plain dicts of tensors, with the captions and keys of their samples beside them."""

from typing import NotRequired, TypedDict

from jaxtyping import Bool, Float
from torch import Tensor


class ImageBatch(TypedDict):
    """Images as they come from shards. A loader makes only the pixel fields that its stage asked for."""

    pixels: NotRequired[Float[Tensor, "b 3 h w"]]  # [-1, 1]
    clip_pixels: NotRequired[Float[Tensor, "b 3 s s"]]  # CLIP's mean and standard deviation taken out
    caption: list[str]
    key: list[str]  # "shard stem/sample key"


class EmbeddingBatch(TypedDict):
    """Precomputed CLIP embeddings: raw, neither of unit length nor scaled by the prior's statistics."""

    image_emb: Float[Tensor, "b d"]
    text_emb: Float[Tensor, "b d"]
    text_tokens: Float[Tensor, "b n w"]  # last hidden states, one a token
    text_mask: Bool[Tensor, "b n"]  # True on real tokens
    caption: list[str]
    key: list[str]


class LatentBatch(EmbeddingBatch):
    """The same, with the image autoencoder's latent."""

    z: Float[Tensor, "b c h w"]
