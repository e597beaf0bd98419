"""Draws one batch from a trained diffusion model, a prior or a decoder.

`Diffusion` is the model. A draw starts from noise or from an image (`Start`), may keep a part of an image
(`InpaintCondition`), and shows a progress bar and calls the caller's callback on its way (`SamplingProgress`).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from open_kandinsky.core.errors import UserError
from open_kandinsky.diffusion.denoise import Denoise, clamp, denoiser, guide, keep_known
from open_kandinsky.diffusion.parameterisation import Denoised, Parameterisation
from open_kandinsky.diffusion.process import diffuse
from open_kandinsky.diffusion.samplers import Grid, last_steps, named, unchanged
from open_kandinsky.pipeline.options import Number, check

Noise = Iterator[Tensor]
Watch = Callable[[int, int, Tensor], object]  # (call of the network, from 1; how many in all; estimate of x_0)
STRENGTH = 0.3  # the default of image_to_image


class Step(NamedTuple):
    """The argument of `callback=`, which is called after each call of a network.

    `x_0` is the present estimate of the result: of the prior CLIP embeddings [b d], of the decoder latents
    [b c h w], which `pipe.latent_to_image` turns into pixels.
    """

    part: str  # "prior" or "decoder"
    index: int  # from 1
    total: int
    x_0: Tensor


class SamplingProgress:
    """A progress bar while a part samples, and the caller's callback."""

    def __init__(self, part: str, callback: Callable[[Step], object] | None, progress: bool | None) -> None:
        self.part, self.callback = part, callback
        self.bar: Any = tqdm(desc=part, unit="step", leave=False, disable=None if progress is None else not progress)

    def __enter__(self) -> Watch | None:
        return None if self.bar.disable and self.callback is None else self.update

    def __exit__(self, *raised: object) -> None:
        self.bar.close()

    def update(self, index: int, total: int, x_0: Tensor) -> None:
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

    def but(self, **changes: Any) -> "Sampling":
        """A copy with the changes; None leaves a field as it is. ValueError for a value that cannot be."""
        check(changes)
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


@runtime_checkable
class Start(Protocol):
    """From a sampler's grid and standard normal eps to the steps that are taken and the x_t that they begin with."""

    def __call__(self, grid: Grid, eps: Tensor, standardise: Callable[[Tensor], Tensor]) -> tuple[Grid, Tensor]: ...


@dataclass(frozen=True)
class FromNoise:
    """All steps, from pure noise."""

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
        taken = int(steps * check_strength(self.strength))
        if taken < 1:
            least = math.ceil(1000 / steps) / 1000
            raise UserError(
                f"strength={self.strength} of {steps} steps is not one step: take a strength of at least {least}, "
                "or more steps"
            )
        grid = last_steps(grid, taken)
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
class InpaintCondition:
    """Latents z (MoVQ's scale) and their mask: `keep` is 1 where z is kept, 0 where it is to be painted."""

    z: Float[Tensor, "b c h w"]
    keep: Float[Tensor, "b 1 h w"]

    @classmethod
    def all_painted(cls, like: Float[Tensor, "b c h w"]) -> "InpaintCondition":
        """Nothing is kept."""
        return cls(torch.zeros_like(like), torch.zeros_like(like[:, :1]))

    def standardised_for(self, network: Any) -> "StandardisedCondition":
        """ValueError for a U-Net that is neither a text-to-image nor an inpainting one, by its input's channels."""
        channels, of_latent = network.conv_in.in_channels, self.z.shape[1]
        if channels not in (of_latent, 2 * of_latent + 1):
            raise UserError(
                f"the decoder's U-Net reads {channels} channels: for latents of {of_latent} it should be {of_latent} "
                f"(text to image) or {2 * of_latent + 1} (inpainting: x_t, known latent, mask)"
            )
        z = network.standardise(self.z)
        extra = torch.cat([z * self.keep, self.keep], dim=1)[:, : channels - of_latent]
        return StandardisedCondition(z, self.keep, extra)

    def restore(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """`z` with the kept part exactly as it was: some samplers leave a little noise on it, others rescale it."""
        return torch.lerp(z, self.z, self.keep)


@dataclass(frozen=True)
class StandardisedCondition:
    """An inpainting condition in a network's scale. `extra`: [z * keep, keep] for an inpainting U-Net, else empty."""

    z: Float[Tensor, "b c h w"]
    keep: Float[Tensor, "b 1 h w"]
    extra: Float[Tensor, "b extra h w"]

    def network_input(self, x_t: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c_in h w"]:
        """[x_t, extra]. `x_t` is a batch, or for guidance twice that."""
        return torch.cat([x_t, self.extra.repeat(len(x_t) // len(self.extra), 1, 1, 1)], dim=1)

    def blend(self, denoise: Denoise) -> Denoise:
        return keep_known(denoise, self.z, self.keep)


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
        """A draw in the data's own scale; the network's is standardised. `x_T` is standard normal for every `start`.

        x_0 is changed in this order: guidance, the model's clamp and the sampler's, the kept part of an inpainted
        latent, the sampler's threshold. `watch` gets x_0 after all of them.
        """
        standardise = self.network.standardise
        condition = None if inpaint is None else inpaint.standardised_for(self.network)

        def output(x_t: Tensor, t: Tensor) -> Tensor:
            x = x_t if condition is None else condition.network_input(x_t)
            return self.network(x.to(self.dtype), t, context)

        denoise = denoiser(output, self.parameterisation, self.alpha_bar)
        denoise = denoise if sampling.scale == 1 else guide(denoise, sampling.scale)
        denoise = denoise if sampling.clamp is None else clamp(denoise, sampling.clamp)
        sampler = named(sampling.sampler)
        grid, x_t = start(sampler.spacing(self.alpha_bar, sampling.steps), x_T, standardise)
        blend = unchanged if condition is None else condition.blend

        def watched(denoise: Denoise) -> Denoise:
            return denoise if watch is None else reporting(denoise, watch, sampler.calls(grid), standardise.inverse)

        return standardise.inverse(sampler.along(grid, denoise, x_t, noise, blend=blend, watch=watched))

    @property
    def dtype(self) -> torch.dtype:
        """The weights'; noise and x_t stay float32."""
        return next((parameter.dtype for parameter in self.network.parameters()), torch.float32)


def reporting(denoise: Denoise, watch: Watch, total: int, inverse: Callable[[Tensor], Tensor]) -> Denoise:
    """Call `watch` after each denoise, with the number of the call and x_0 in the data's own scale."""
    calls = count(1)

    def reported(x_t: Tensor, t: Tensor) -> Denoised:
        estimate = denoise(x_t, t)
        watch(next(calls), total, inverse(estimate.x_0))
        return estimate

    return reported


def guidance_batch(prefix: Any, n: int, guided: bool) -> Any:
    """A prior's prefix of n captions and one negative caption as guidance needs it: the negative's rows n times."""
    return take_rows(prefix, [*range(n), *[n] * n]) if guided else prefix


def take_rows(value: Any, rows: list[int]) -> Any:
    """The given rows of each tensor in a nested tuple."""
    if isinstance(value, Tensor):
        return value[rows]
    inner = [take_rows(each, rows) for each in value]
    return type(value)(*inner) if hasattr(value, "_fields") else tuple(inner)
