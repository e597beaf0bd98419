"""The layer under the modes: networks and samplers, with embeddings and latents handed around in the open.

Every sampled image has its own seed and two streams of noise, the prior's and the decoder's, so that image i is the
same in any batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from open_kandinsky.data.transforms import ClipPixels
from open_kandinsky.diffusion.noise import PerImageNoise, check_seeds
from open_kandinsky.networks.clip import Clip
from open_kandinsky.networks.movq import MoVQ
from open_kandinsky.pipeline.canvas import check_sides
from open_kandinsky.pipeline.diffusion import Diffusion, Noise
from open_kandinsky.pipeline.known import Known
from open_kandinsky.pipeline.options import Number
from open_kandinsky.pipeline.start import FROM_NOISE, Start

PRIOR_STREAM = 0x9E3779B9  # xor'ed to a seed: the prior's noise is not the beginning of the decoder's


class Layer:
    """CLIP, prior, decoder and MoVQ, each by itself."""

    def __init__(
        self,
        *,
        clip: Clip,
        text: Any,
        prior: Diffusion,
        decoder: Diffusion,
        movq: MoVQ,
        size: int,
        device: torch.device | str,
    ) -> None:
        self.clip, self.text, self.prior, self.decoder, self.movq = clip, text, prior, decoder, movq
        self.size, self.device = size, device
        self.dtype = next(movq.parameters()).dtype  # of the weights; noise and x_t stay float32

    @torch.inference_mode()
    def text_to_embedding(
        self,
        prompts: Sequence[str],
        *,
        negative_prompt: str = "",
        steps: int | None = None,
        scale: Number | None = None,
        sampler: str | None = None,
        seeds: Sequence[int] | None = None,
        x_T: Float[Tensor, "b d"] | None = None,
        noise: Noise | None = None,
    ) -> Float[Tensor, "b d"]:
        """Prompts to CLIP image embeddings by the prior, guided away from `negative_prompt`."""
        sampling = self.prior.sampling.but(steps=steps, scale=scale, sampler=sampler)
        guided = sampling.scale != 1
        text = self.clip.encode_text([*prompts, *[negative_prompt] * guided])
        network = self.prior.network
        own = self._noise(seeds, len(prompts), network.standardise.mean.shape, stream=PRIOR_STREAM)
        prefix = guiding(network.prefix(text.tokens, text.emb, text.mask), len(prompts), guided)
        return self.prior.sample(prefix, *overridden(own, x_T, noise), sampling)

    @torch.inference_mode()
    def image_to_embedding(self, images: Sequence[Image.Image]) -> Float[Tensor, "b d"]:
        """Pictures of any size from 8 pixels a side to CLIP embeddings, as CLIP crops and scales them."""
        height, width = self.clip.image_size
        assert height == width, "CLIP's image is square"
        for image in images:
            check_sides(*image.size, largest=None)
        prepared = torch.stack([ClipPixels(size=width)(image.convert("RGB")) for image in images])
        return self.clip.encode_image(prepared.to(self.device, self.dtype)).float()

    @torch.inference_mode()
    def embedding_to_latent(
        self,
        image_emb: Float[Tensor, "b d"],
        prompts: Sequence[str],
        *,
        negative_emb: Float[Tensor, "b d"] | None = None,
        size: tuple[int, int] | None = None,
        start: Start = FROM_NOISE,
        known: Known | None = None,
        steps: int | None = None,
        scale: Number | None = None,
        sampler: str | None = None,
        seeds: Sequence[int] | None = None,
        x_T: Float[Tensor, "b c h w"] | None = None,
        noise: Noise | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Embeddings and prompts to MoVQ latents by the decoder. Sides are rounded up to what the U-Net divides.

        Guidance is away from `negative_emb`, where None from CLIP's embedding of no picture, and from the empty prompt.
        """
        sampling = self.decoder.sampling.but(steps=steps, scale=scale, sampler=sampler)
        network = self.decoder.network
        own = self._noise(seeds, len(prompts), self.latent_shape(size))
        x_T, noise = overridden(own, x_T, noise)
        known = Known.nothing(x_T) if known is None else known
        guided = sampling.scale != 1
        if guided:
            away = self.clip.null_image().expand_as(image_emb) if negative_emb is None else negative_emb
            image_emb = torch.cat([image_emb, away])
        context = network.context(image_emb.to(self.dtype), *self._text(prompts, guided))
        z = self.decoder.sample(context, x_T, noise, sampling, start=start, known=known.seen_by(network))
        return known.restore(z)

    @torch.inference_mode()
    def latent_to_image(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 hp wp"]:
        """Latents to pixels in [-1, 1]."""
        return self.movq.decode(z.to(self.dtype)).float().clamp(-1, 1)

    @torch.inference_mode()
    def image_to_latent(self, pixels: Float[Tensor, "b 3 hp wp"]) -> Float[Tensor, "b c h w"]:
        """Pixels in [-1, 1] to latents."""
        return self.movq.encode(pixels.to(self.dtype)).float()

    def latent_shape(self, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """Channels, rows and columns for a picture of `size` (width, height) in pixels, where None of the usual."""
        width, height = size or (self.size, self.size)
        if min(width, height) < 1:
            raise ValueError(f"size={width}x{height}: sides are at least 1 pixel")
        unit = self.movq.factor * self.decoder.network.factor
        rows, columns = (-(-side // unit) * self.decoder.network.factor for side in (height, width))
        return len(self.decoder.network.standardise.mean), rows, columns

    def _text(self, prompts: Sequence[str], guided: bool) -> tuple[Tensor | None, Tensor | None]:
        """States and embedding of the decoder's prompts, and for guidance as often of the empty one."""
        if self.text is None:
            return None, None
        text = self.text.encode_text([*prompts, ""])
        rows = [*range(len(prompts))] + [len(prompts)] * (len(prompts) * guided)
        return text.tokens[rows], text.emb[rows]

    def _noise(self, seeds: Sequence[int] | None, n: int, shape: Sequence[int], stream: int = 0) -> PerImageNoise:
        return PerImageNoise([seed ^ stream for seed in seeds_for(n, seeds)], shape, self.device)


def guiding(prefix: Any, n: int, guided: bool) -> Any:
    """A prior's prefix of n captions and the one that is guided away from, as guidance wants it: that one n times."""
    return rows_of(prefix, [*range(n), *[n] * n]) if guided else prefix


def rows_of(value: Any, rows: Sequence[int]) -> Any:
    """Of each tensor in tuples of tensors."""
    if isinstance(value, Tensor):
        return value[rows]
    inner = [rows_of(each, rows) for each in value]
    return type(value)(*inner) if hasattr(value, "_fields") else tuple(inner)


def seeds_for(n: int, seeds: Sequence[int] | None) -> Sequence[int]:
    """One an image, where None 0, 1, 2, ...; ValueError for another number of them, and for one that is none."""
    seeds = range(n) if seeds is None else seeds
    if len(seeds) != n:
        raise ValueError(f"{len(seeds)} seeds for {n} images; give one for each")
    check_seeds(seeds)
    return seeds


def overridden(own: Noise, x_T: Tensor | None, noise: Noise | None) -> tuple[Tensor, Noise]:
    """The generators' draws, but for what the caller gives."""
    return next(own) if x_T is None else x_T, own if noise is None else noise
