"""Condition dropout: some examples learn without their condition, so that sampling can be guided away from none."""

import torch
from einops import rearrange
from jaxtyping import Bool, Shaped
from torch import Tensor, nn

from open_kandinsky.core.draws import Draws


class Null(nn.Module):
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
