"""Where sampling begins: in noise, or in a picture with some noise."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from open_kandinsky.diffusion.process import diffuse
from open_kandinsky.diffusion.timesteps import Grid, last
from open_kandinsky.pipeline.options import Number

STRENGTH = 0.3  # of image_to_image, unless said otherwise


@runtime_checkable
class Start(Protocol):
    """From a sampler's grid and standard normal eps to the steps that are walked and the x_t they begin with."""

    def __call__(self, grid: Grid, eps: Tensor, standardise: Callable[[Tensor], Tensor]) -> tuple[Grid, Tensor]: ...


@dataclass(frozen=True)
class FromNoise:
    """All steps, from nothing but noise."""

    def __call__(self, grid: Grid, eps: Tensor, standardise: Callable[[Tensor], Tensor]) -> tuple[Grid, Tensor]:
        return grid, eps


FROM_NOISE = FromNoise()


@dataclass(frozen=True)
class FromImage:
    """The last `strength` of the steps, from the latent z (MoVQ's scale) diffused to the first of them.

    With the model's own alpha_bar: the official image-to-image noises by another model's schedule.
    """

    z: Float[Tensor, "b c h w"]
    strength: Number

    def __call__(self, grid: Grid, eps: Tensor, standardise: Callable[[Tensor], Tensor]) -> tuple[Grid, Tensor]:
        steps = len(grid.t)
        walked = int(steps * check_strength(self.strength))
        if walked < 1:
            least = math.ceil(1000 / steps) / 1000
            raise ValueError(
                f"strength={self.strength} of {steps} steps is not one step: take a strength of at least {least}, "
                "or more steps"
            )
        grid = last(grid, walked)
        z = standardise(self.z)
        return grid, diffuse(z, eps, grid.alpha_bar[:1].to(z.device).expand(len(z)))


def check_strength(strength: Number) -> Number:
    """ValueError unless in (0, 1]: 0 would be the image as it is."""
    if not 0 < strength <= 1:
        raise ValueError(
            f"strength={strength}: above 0, at most 1; small stays near the image, 1 leaves least of it, 0.3 is usual"
        )
    return strength
