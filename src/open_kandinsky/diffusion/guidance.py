"""Classifier-free guidance: a wrapper from one denoise to another (Ho & Salimans 2022)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_kandinsky.diffusion.denoise import Denoise
from open_kandinsky.diffusion.parameterisation import Denoised


def guide(denoise: Denoise, scale: int | float) -> Denoise:
    """Extrapolate from the unconditional estimate to the conditional one, and past it, by `scale`.

    `denoise` is bound to a doubled batch of conditions, conditional half first, so that one call of the network
    serves both. x_0 is linear in eps and in v, so this is guidance of those too. scale = 1 is no guidance. The
    variance is the conditional half's.
    """

    def guided(x_t: Float[Tensor, "b ..."], t: Int[Tensor, "b"]) -> Denoised:
        x_0, fraction = denoise(torch.cat([x_t, x_t]), torch.cat([t, t]))
        conditional, unconditional = x_0.chunk(2)
        return Denoised(unconditional.lerp(conditional, scale), None if fraction is None else fraction.chunk(2)[0])

    return guided
