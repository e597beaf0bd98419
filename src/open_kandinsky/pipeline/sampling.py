"""Draws from a trained diffusion model, a prior or a decoder: from noise or from an image, with guidance."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from open_kandinsky.core.errors import UserError
from open_kandinsky.diffusion.denoise import Denoise, clamp, denoiser
from open_kandinsky.diffusion.guidance import guide
from open_kandinsky.diffusion.parameterisation import Denoised, Parameterisation
from open_kandinsky.diffusion.process import diffuse
from open_kandinsky.diffusion.samplers import named, unchanged
from open_kandinsky.diffusion.timesteps import Grid, last
from open_kandinsky.pipeline.inpainting import InpaintCondition
from open_kandinsky.pipeline.options import Number, check

Noise = Iterator[Tensor]
Watch = Callable[[int, int, Tensor], object]  # (call of the network, from 1; how many in all; estimate of x_0)
STRENGTH = 0.3  # of image_to_image, unless said otherwise


class Step(NamedTuple):
    """What `callback=` is told after each call of a network.

    `x_0` is the present estimate of what will come out: of the prior CLIP embeddings [b d], of the decoder latents
    [b c h w], which `pipe.latent_to_image` turns into pixels.
    """

    part: str  # "prior" or "decoder"
    index: int  # from 1
    total: int
    x_0: Tensor


class Watching:
    """A progress bar while a part draws, and the caller's callback."""

    def __init__(self, part: str, callback: Callable[[Step], object] | None, progress: bool | None) -> None:
        self.part, self.callback = part, callback
        self.bar: Any = tqdm(desc=part, unit="step", leave=False, disable=None if progress is None else not progress)

    def __enter__(self) -> Watch | None:
        return None if self.bar.disable and self.callback is None else self.tell

    def __exit__(self, *raised: object) -> None:
        self.bar.close()

    def tell(self, index: int, total: int, x_0: Tensor) -> None:
        self.bar.total = total
        self.bar.update(index - self.bar.n)
        if self.callback is not None:
            self.callback(Step(self.part, index, total, x_0))


@dataclass(frozen=True)
class Sampling:
    """How a diffusion model is sampled unless the caller says otherwise."""

    steps: int
    scale: Number
    sampler: str
    clamp: Number | None  # on |x_0|

    def but(self, **chosen: Any) -> "Sampling":
        """With what the caller chose; None leaves a field as it is. ValueError for what cannot be."""
        check(chosen)
        return replace(self, **{name: value for name, value in chosen.items() if value is not None})


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
            raise UserError(
                f"strength={self.strength} of {steps} steps is not one step: take a strength of at least {least}, "
                "or more steps"
            )
        grid = last(grid, walked)
        z = standardise(self.z)
        return grid, diffuse(z, eps, grid.alpha_bar[:1].to(z.device).expand(len(z)))


def check_strength(strength: Any) -> Number:
    """ValueError unless in (0, 1]: 0 would be the image as it is."""
    if not isinstance(strength, int | float) or not 0 < strength <= 1:
        raise UserError(
            f"strength={strength}: above 0, at most 1; small stays near the image, 1 leaves least of it, 0.3 is usual"
        )
    return strength


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
        inpaint: InpaintCondition | None = None,
        watch: Watch | None = None,
    ) -> Float[Tensor, "b ..."]:
        """A draw in the data's own scale; the network's is standardised. `x_T` is standard normal wherever it starts.

        In this order: guidance, the model's clamp and the sampler's own, the known part of an inpainted latent, the
        sampler's threshold. `watch` is told x_0 after all of them.
        """
        standardise = self.network.standardise
        known = None if inpaint is None else inpaint.known_by(self.network)

        def output(x_t: Tensor, t: Tensor) -> Tensor:
            x = x_t if known is None else known.beside(x_t)
            return self.network(x.to(self.dtype), t, context)

        denoise = denoiser(output, self.parameterisation, self.alpha_bar)
        denoise = denoise if sampling.scale == 1 else guide(denoise, sampling.scale)
        denoise = denoise if sampling.clamp is None else clamp(denoise, sampling.clamp)
        sampler = named(sampling.sampler)
        grid, x_t = start(sampler.spacing(self.alpha_bar, sampling.steps), x_T, standardise)
        blend = unchanged if known is None else known.blend

        def watched(denoise: Denoise) -> Denoise:
            return denoise if watch is None else telling(denoise, watch, sampler.calls(grid), standardise.inverse)

        return standardise.inverse(sampler.along(grid, denoise, x_t, noise, blend=blend, watch=watched))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; noise and x_t stay float32."""
        return next((parameter.dtype for parameter in self.network.parameters()), torch.float32)


def telling(denoise: Denoise, watch: Watch, total: int, inverse: Callable[[Tensor], Tensor]) -> Denoise:
    """The same, which tells `watch` how often it was called, and x_0 in the data's own scale."""
    calls = 0

    def told(x_t: Tensor, t: Tensor) -> Denoised:
        nonlocal calls
        found, calls = denoise(x_t, t), calls + 1
        watch(calls, total, inverse(found.x_0))
        return found

    return told


def guiding(prefix: Any, n: int, guided: bool) -> Any:
    """A prior's prefix of n captions and the one that is guided away from, as guidance wants it: that one n times."""
    return rows_of(prefix, [*range(n), *[n] * n]) if guided else prefix


def rows_of(value: Any, rows: list[int]) -> Any:
    """Of each tensor in tuples of tensors."""
    if isinstance(value, Tensor):
        return value[rows]
    inner = [rows_of(each, rows) for each in value]
    return type(value)(*inner) if hasattr(value, "_fields") else tuple(inner)


def overridden(own: Noise, x_T: Tensor | None, noise: Noise | None) -> tuple[Tensor, Noise]:
    """The generators' draws, but for what the caller gives."""
    return next(own) if x_T is None else x_T, own if noise is None else noise
