"""`denoise(x_t, t) -> Denoised` is all that a sampler sees of a model. Wrappers change one denoise into another:
guidance, clamps, thresholds, inpainting."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from open_kandinsky.diffusion.parameterisation import Denoised, Parameterisation, read
from open_kandinsky.diffusion.process import broadcast_to

Denoise = Callable[[Tensor, Tensor], Denoised]  # (x_t [b ...], t [b]) -> estimate of x_0 [b ...]


def denoiser(
    network: Callable[[Tensor, Tensor], Tensor], parameterisation: Parameterisation, alpha_bar: Float[Tensor, "T"]
) -> Denoise:
    """Read `network(x_t, t)`, its conditioning already bound, as an estimate of x_0."""

    def denoise(x_t: Float[Tensor, "b ..."], t: Int[Tensor, "b"]) -> Denoised:
        return read(parameterisation, network(x_t, t), x_t, alpha_bar[t])

    return denoise


def guide(denoise: Denoise, scale: int | float) -> Denoise:
    """Extrapolate from the unconditional estimate to the conditional one, and past it, by `scale`.

    `denoise` is bound to a doubled batch of conditions, conditional half first, so that one call of the network
    serves both. x_0 is linear in eps and in v, so this is guidance of those too. scale = 1 is no guidance. The
    variance is the conditional half's.
    """

    def guided(x_t: Float[Tensor, "b ..."], t: Int[Tensor, "b"]) -> Denoised:
        x_0, variance_frac = denoise(torch.cat([x_t, x_t]), torch.cat([t, t]))
        conditional, unconditional = x_0.chunk(2)
        of_conditional = None if variance_frac is None else variance_frac.chunk(2)[0]
        return Denoised(unconditional.lerp(conditional, scale), of_conditional)

    return guided


def clamp(denoise: Denoise, limit: float) -> Denoise:
    """Keep x_0 within +-limit: 10 in Kandinsky's prior, 2 in its ancestral decoder."""

    def clamped(x_t: Tensor, t: Tensor) -> Denoised:
        x_0, variance_frac = denoise(x_t, t)
        return Denoised(x_0.clamp(-limit, limit), variance_frac)

    return clamped


def dynamic_threshold(denoise: Denoise, quantile: float) -> Denoise:
    """Saturate each image's x_0 at its own quantile of |x_0|, if above 1, and rescale (Saharia et al. 2022, 2.3)."""
    return _threshold(denoise, lambda x_0: _quantile(x_0, quantile))


def first_threshold(denoise: Denoise, quantile: float) -> Denoise:
    """`dynamic_threshold` with the first image's quantile for the whole batch, as a bug of Kandinsky 2.1 has it."""
    return _threshold(denoise, lambda x_0: _quantile(x_0[:1], quantile).expand(len(x_0)))


def _threshold(denoise: Denoise, limit: Callable[[Tensor], Tensor]) -> Denoise:
    def thresholded(x_t: Tensor, t: Tensor) -> Denoised:
        x_0, variance_frac = denoise(x_t, t)
        s = broadcast_to(limit(x_0).clamp(min=1), x_0)
        return Denoised(x_0.clamp(-s, s) / s, variance_frac)

    return thresholded


def _quantile(x_0: Float[Tensor, "b ..."], quantile: float) -> Float[Tensor, "b"]:
    return torch.quantile(x_0.flatten(1).abs().float(), quantile, dim=1)


def keep_known(denoise: Denoise, known: Float[Tensor, "b ..."], keep: Float[Tensor, "b ..."]) -> Denoise:
    """Inpainting: where `keep` is 1, x_0 is the known signal; where 0, the network's."""

    def blended(x_t: Tensor, t: Tensor) -> Denoised:
        x_0, variance_frac = denoise(x_t, t)
        return Denoised(torch.lerp(x_0, known, keep), variance_frac)

    return blended
