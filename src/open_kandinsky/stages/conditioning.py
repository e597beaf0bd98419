"""Condition dropout: some examples learn without their condition, so that sampling can be guided away from none.

What a decoder sees beside x_t: nothing, or for inpainting a part of the latent and where it is known.
"""

from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from open_kandinsky.core.draws import Draws


class NullConditions(nn.Module):
    """The conditions of nothing: the empty caption's states, the embedding of CLIP's mean-colour image.

    They come with the data, from the encoders that made it, and stay out of the state dict.
    """

    def set(self, **conditions: Shaped[Tensor, "..."]) -> None:
        for name, value in conditions.items():
            self.register_buffer(name, value, persistent=False)

    def drop(self, chance: float, draws: Draws, **conditions: Shaped[Tensor, "b ..."]) -> list[Shaped[Tensor, "b ..."]]:
        """Each example's conditions, all of them or none, replaced with probability `chance`; in the given order."""
        some = next(iter(conditions.values()), None)
        if some is None:
            return []
        dropped = draws.uniform(some) < chance
        return [_where(dropped, getattr(self, name), value) for name, value in conditions.items()]


def _where(dropped: Bool[Tensor, "b"], null: Tensor, value: Tensor) -> Tensor:
    mask = rearrange(dropped, f"b -> b {'1 ' * (value.ndim - 1)}")
    return torch.where(mask, null.to(value.dtype), value)


@runtime_checkable
class InputConditioning(Protocol):
    """The input's channels beside x_t, drawn anew for each training example's latent z."""

    def __call__(self, z: Float[Tensor, "b c h w"], draws: Draws) -> Float[Tensor, "b extra h w"]: ...


class NoInputConditioning:
    """Text to image."""

    def __call__(self, z: Float[Tensor, "b c h w"], draws: Draws) -> Float[Tensor, "b 0 h w"]:
        return z[:, :0]


class InpaintingInput:
    """[z where known, the mask]: the mask is 1 where the latent is known and 0 where it is to be painted.

    Kandinsky 2.1's convention inside the network; what is painted is a box, an ellipse or all but one of them, of
    `smallest` to `largest` of each side.
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
