"""A trained diffusion model with all that it takes to sample it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from open_kandinsky.diffusion.denoise import clamp, denoiser
from open_kandinsky.diffusion.guidance import guide
from open_kandinsky.diffusion.parameterisation import Parameterisation
from open_kandinsky.diffusion.samplers import named
from open_kandinsky.pipeline.known import NOTHING, Seen
from open_kandinsky.pipeline.options import Number
from open_kandinsky.pipeline.start import FROM_NOISE, Start

Noise = Iterator[Tensor]


@dataclass(frozen=True)
class Sampling:
    """How a diffusion model is sampled unless the caller says otherwise."""

    steps: int
    scale: Number
    sampler: str
    clamp: Number | None  # on |x_0|

    def but(self, **chosen: Any) -> "Sampling":
        """With what the caller chose; None leaves a field as it is."""
        return replace(self, **{name: value for name, value in chosen.items() if value is not None})


@dataclass(frozen=True)
class Diffusion:
    """A network with the schedule and parameterisation that it was trained in."""

    network: Any
    alpha_bar: Float[Tensor, "T"]
    parameterisation: Parameterisation
    sampling: Sampling

    def sample(
        self,
        context: Any,  # the network's; for guidance, over a doubled batch, conditional half first
        x_T: Float[Tensor, "b ..."],
        noise: Noise,
        sampling: Sampling,
        *,
        start: Start = FROM_NOISE,
        known: Seen = NOTHING,
    ) -> Float[Tensor, "b ..."]:
        """A draw in the data's own scale; the network's is standardised. `x_T` is standard normal wherever it starts.

        The known is blended in after guidance and clamping, and before what the sampler itself does to x_0.
        """

        def output(x_t: Tensor, t: Tensor) -> Tensor:
            return self.network(known.see(x_t).to(self.dtype), t, context)

        denoise = denoiser(output, self.parameterisation, self.alpha_bar)
        denoise = denoise if sampling.scale == 1 else guide(denoise, sampling.scale)
        denoise = denoise if sampling.clamp is None else clamp(denoise, sampling.clamp)
        sampler, standardise = named(sampling.sampler), self.network.standardise
        grid, x_t = start(sampler.spacing(self.alpha_bar, sampling.steps), x_T, standardise)
        return standardise.inverse(sampler.along(grid, known.blend(denoise), x_t, noise))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; noise and x_t stay float32."""
        return next((parameter.dtype for parameter in self.network.parameters()), torch.float32)
