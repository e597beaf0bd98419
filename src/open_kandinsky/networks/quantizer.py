"""The codebook of a vector-quantised autoencoder."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from open_kandinsky.core.distributed import shard_like


class Quantised(NamedTuple):
    """The nearest codes, their numbers, and the loss that pulls codes and encoder together."""

    z_q: Float[Tensor, "b c h w"]
    index: Int[Tensor, "b h w"]
    loss: Float[Tensor, ""]


class Codebook(nn.Module):
    """Nearest code in L2, with the straight-through gradient (van den Oord et al. 2017).

    The loss is in VQGAN's legacy form, as Kandinsky's: |sg(e) - z|^2 + beta |e - sg(z)|^2, so that beta weighs the
    codes and not the commitment.
    """

    def __init__(self, *, codes: int, channels: int, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.embedding = nn.Embedding(codes, channels)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def nearest(self, z: Float[Tensor, "b c h w"]) -> Int[Tensor, "b h w"]:
        flat, codes = rearrange(z, "b c h w -> (b h w) c").float(), self.embedding.weight.float()
        with _without_autocast(z):  # autocast would compute the product in bfloat16
            distance = codes.square().sum(1) - 2 * flat @ codes.T  # without |z|^2, which does not change the order
        return distance.argmin(1).view(len(z), *z.shape[2:])

    def lookup(self, index: Int[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
        return rearrange(self.embedding(index), "b h w c -> b c h w").contiguous()  # one layout all the way

    def quantise(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.lookup(self.nearest(z)).to(z.dtype)

    @torch.no_grad()
    def restart(self, which: Bool[Tensor, "codes"], latents: Float[Tensor, "codes c"]) -> None:
        """Replace the codes selected by `which` with latents; all processes pass the same."""
        weight = self.embedding.weight
        selected, codes = shard_like(which[:, None], weight), shard_like(latents.to(weight.dtype), weight)
        weight.copy_(torch.where(selected, codes, weight))

    def forward(self, z: Float[Tensor, "b c h w"]) -> Quantised:
        index = self.nearest(z)
        e = self.lookup(index)
        loss = (e.detach() - z).square().mean() + self.beta * (e - z.detach()).square().mean()
        return Quantised(z + (e - z).detach(), index, loss)


def perplexity(index: Int[Tensor, "..."], codes: int) -> Float[Tensor, ""]:
    """exp of the entropy of code usage: from 1, if one code is used, to `codes`, if all are used equally."""
    return perplexity_of(torch.bincount(index.flatten(), minlength=codes))


def perplexity_of(counts: Int[Tensor, "codes"]) -> Float[Tensor, ""]:
    """The perplexity from the count of each code; 0 where all counts are 0."""
    p = counts.double() / counts.sum().clamp(min=1)
    return torch.special.entr(p).sum().exp().float() * (counts.sum() > 0)


def _without_autocast(x: Tensor) -> AbstractContextManager:
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)  # meta has no autocast
