"""How a prior and a decoder are conditioned in training: condition dropout, and input channels beside x_t.

Dropped conditions teach the network the unconditional prediction that classifier-free guidance needs. The further input
channels are a decoder's for inpainting: the known part of the latent, and its mask.
"""

from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from open_kandinsky.core.draws import Draws


class NullConditions(nn.Module):
    """Null conditions for classifier-free guidance: the empty caption's states, the embedding of a mean-colour image.

    They come with the data, from the encoders that made it, and stay out of the state dict.
    """

    def set(self, **conditions: Shaped[Tensor, "..."]) -> None:
        for name, value in conditions.items():
            self.register_buffer(name, value, persistent=False)

    def drop(self, chance: float, draws: Draws, **conditions: Shaped[Tensor, "b ..."]) -> list[Shaped[Tensor, "b ..."]]:
        """Replace all of an example's conditions, or none, with probability `chance`; returned in the given order."""
        if not conditions:
            return []
        dropped = draws.uniform(next(iter(conditions.values()))) < chance
        masks = [rearrange(dropped, f"b -> b {'1 ' * (value.ndim - 1)}") for value in conditions.values()]
        nulls = [getattr(self, name).to(value.dtype) for name, value in conditions.items()]
        return [torch.where(*each) for each in zip(masks, nulls, conditions.values(), strict=True)]


@runtime_checkable
class InputConditioning(Protocol):
    """Returns a decoder's input channels beside x_t for latents z; random ones are drawn anew for each example."""

    def __call__(self, z: Float[Tensor, "b c h w"], draws: Draws) -> Float[Tensor, "b extra h w"]: ...


class NoInputConditioning:
    """No further channels: text to image."""

    def __call__(self, z: Float[Tensor, "b c h w"], draws: Draws) -> Float[Tensor, "b 0 h w"]:
        return z[:, :0]


class InpaintingInput:
    """[z * mask, mask] with a random mask, which is 1 where the latent is known and 0 where it is to be painted.

    That is Kandinsky 2.1's convention inside the network. The painted area is a box or an ellipse, or all outside of
    it; its height and width are from `smallest` to `largest` times the latent's.
    """

    def __init__(self, *, smallest: float, largest: float) -> None:
        self.smallest, self.largest = smallest, largest

    def __call__(self, z: Float[Tensor, "b c h w"], draws: Draws) -> Float[Tensor, "b extra h w"]:
        keep = self.masks(z, draws)
        return torch.cat([z * keep, keep], dim=1)

    def masks(self, z: Float[Tensor, "b c h w"], draws: Draws) -> Float[Tensor, "b 1 h w"]:
        b, _, h, w = z.shape
        half = (self.smallest + (self.largest - self.smallest) * draws.uniform(z, 2, 1, 1)) / 2
        centre = half + draws.uniform(z, 2, 1, 1) * (1 - 2 * half)
        y, x = (torch.arange(n, device=z.device).add(0.5).div(n) for n in (h, w))
        dy, dx = (y[:, None] - centre[:, 0]).abs() / half[:, 0], (x - centre[:, 1]).abs() / half[:, 1]
        dy, dx = dy.expand(b, h, w), dx.expand(b, h, w)
        is_box, is_outside = (draws.uniform(z, 1, 1) < 0.5 for _ in range(2))
        paint = torch.where(is_box, torch.maximum(dy, dx) < 1, dy.square() + dx.square() < 1)
        return (~(paint ^ is_outside)).to(z.dtype)[:, None]
