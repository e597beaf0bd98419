"""The assembled system and its modes. No Lightning, no configuration: networks, schedules and samplers.

Every sampled image has its own seed and two streams of noise, the prior's and the decoder's, so that image i is the
same in any batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import repeat
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from open_kandinsky.data.transforms import ClipPixels, to_images
from open_kandinsky.diffusion.denoise import clamp, denoiser
from open_kandinsky.diffusion.guidance import guide
from open_kandinsky.diffusion.noise import PerImageNoise, check_seeds
from open_kandinsky.diffusion.parameterisation import Parameterisation
from open_kandinsky.diffusion.samplers import named
from open_kandinsky.networks.clip import Clip
from open_kandinsky.networks.movq import MoVQ

PRIOR_STREAM = 0x9E3779B9  # xor'ed to a seed: the prior's noise is not the beginning of the decoder's
Noise = Iterator[Tensor]


@dataclass(frozen=True)
class Sampling:
    """How a diffusion model is sampled unless the caller says otherwise."""

    steps: int
    scale: float
    sampler: str
    clamp: float | None  # on |x_0|


@dataclass(frozen=True)
class Diffusion:
    """A network with the schedule and parameterisation that it was trained in."""

    network: Any
    alpha_bar: Float[Tensor, "T"]
    parameterisation: Parameterisation
    sampling: Sampling

    def sample(
        self,
        condition: Callable[[Tensor, Tensor], Tensor],  # (x_t, t) -> output; for guidance, over a doubled batch
        x_T: Float[Tensor, "b ..."],
        noise: Noise,
        *,
        steps: int | None,
        scale: float,
        sampler: str | None,
    ) -> Float[Tensor, "b ..."]:
        denoise = denoiser(condition, self.parameterisation, self.alpha_bar)
        denoise = denoise if scale == 1 else guide(denoise, scale)
        denoise = denoise if self.sampling.clamp is None else clamp(denoise, self.sampling.clamp)
        chosen = named(self.sampling.sampler if sampler is None else sampler)
        return chosen(denoise, x_T, self.alpha_bar, self.sampling.steps if steps is None else steps, noise)


class Pipeline:
    """CLIP, prior, decoder and MoVQ. `text` is the decoder's text encoder, which may be CLIP itself."""

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

    def text_to_image(
        self,
        prompts: Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        negative_prompt: str = "",
        prior_steps: int | None = None,
        prior_scale: float | None = None,
        steps: int | None = None,
        scale: float | None = None,
        sampler: str | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Image.Image]:
        """One picture a prompt. `size` is (width, height) in pixels; what is None is as the networks were set up."""
        seeds = self._seeds(seeds, len(prompts))
        image_emb = self.text_to_embedding(
            prompts, negative_prompt=negative_prompt, steps=prior_steps, scale=prior_scale, seeds=seeds
        )
        return self._draw(image_emb, prompts, size=size, steps=steps, scale=scale, sampler=sampler, seeds=seeds)

    def variations(self, image: Image.Image, n: int, **options: Any) -> list[Image.Image]:
        """n pictures of the same CLIP embedding; `options` as for text_to_image."""
        image_emb = self.image_to_embedding([image]).expand(n, -1)
        return self._draw(image_emb, [""] * n, **options)

    def mix(
        self, parts: Sequence[str | Image.Image], weights: Sequence[float], n: int = 1, **options: Any
    ) -> list[Image.Image]:
        """n pictures of a weighted sum of embeddings, a text's by the prior. The weights are taken as they are."""
        if len(parts) != len(weights):
            raise ValueError(f"mix: {len(parts)} texts and images but {len(weights)} weights; give one weight for each")
        seeds = self._seeds(options.pop("seeds", None), n)
        embeddings = [
            self.text_to_embedding([p] * n, seeds=seeds) if isinstance(p, str) else self.image_to_embedding([p])
            for p in parts
        ]
        image_emb = sum(w * e for w, e in zip(weights, embeddings, strict=True))
        assert isinstance(image_emb, Tensor)
        return self._draw(image_emb.expand(n, -1), [""] * n, seeds=seeds, **options)

    @torch.inference_mode()
    def text_to_embedding(
        self,
        prompts: Sequence[str],
        *,
        negative_prompt: str = "",
        steps: int | None = None,
        scale: float | None = None,
        sampler: str | None = None,
        seeds: Sequence[int] | None = None,
        x_T: Float[Tensor, "b d"] | None = None,
        noise: Noise | None = None,
    ) -> Float[Tensor, "b d"]:
        """Prompts to CLIP image embeddings by the prior, guided away from `negative_prompt`."""
        scale = self.prior.sampling.scale if scale is None else scale
        network = self.prior.network
        captions = list(prompts) + ([negative_prompt] * len(prompts) if scale != 1 else [])
        text = self.clip.encode_text(captions)
        prefix = network.prefix(text.tokens, text.emb, text.mask)
        own = self._noise(seeds, len(prompts), network.standardise.mean.shape, stream=PRIOR_STREAM)
        x_0 = self.prior.sample(
            lambda x_t, t: network(x_t.to(self.dtype), t, prefix),
            next(own) if x_T is None else x_T,
            own if noise is None else noise,
            steps=steps,
            scale=scale,
            sampler=sampler,
        )
        return network.standardise.inverse(x_0)

    @torch.inference_mode()
    def image_to_embedding(self, images: Sequence[Image.Image]) -> Float[Tensor, "b d"]:
        """Pictures of any size to CLIP embeddings, as CLIP crops and scales them."""
        height, width = self.clip.image_size
        assert height == width, "CLIP's image is square"
        prepared = torch.stack([ClipPixels(size=width)(image.convert("RGB")) for image in images])
        return self.clip.encode_image(prepared.to(self.device, self.dtype)).float()

    @torch.inference_mode()
    def embedding_to_latent(
        self,
        image_emb: Float[Tensor, "b d"],
        prompts: Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        scale: float | None = None,
        sampler: str | None = None,
        seeds: Sequence[int] | None = None,
        x_T: Float[Tensor, "b c h w"] | None = None,
        noise: Noise | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Embeddings and prompts to MoVQ latents by the decoder. Sides are rounded up to what the U-Net divides."""
        scale = self.decoder.sampling.scale if scale is None else scale
        network, b = self.decoder.network, len(prompts)
        text = self.text.encode_text([*prompts, ""])
        tokens, emb = text.tokens[:b], text.emb[:b]
        if scale != 1:
            nothing = [repeat(x[-1:], "1 ... -> b ...", b=b) for x in (text.tokens, text.emb)]
            tokens, emb = torch.cat([tokens, nothing[0]]), torch.cat([emb, nothing[1]])
            image_emb = torch.cat([image_emb, self.clip.null_image().expand(b, -1)])
        context = network.context(image_emb.to(self.dtype), tokens, emb)
        own = self._noise(seeds, b, self._latent_shape(size))
        z = self.decoder.sample(
            lambda x_t, t: network(x_t.to(self.dtype), t, context),
            next(own) if x_T is None else x_T,
            own if noise is None else noise,
            steps=steps,
            scale=scale,
            sampler=sampler,
        )
        return network.standardise.inverse(z)

    @torch.inference_mode()
    def latent_to_image(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 hp wp"]:
        """Latents to pixels in [-1, 1]."""
        return self.movq.decode(z.to(self.dtype)).float().clamp(-1, 1)

    @torch.inference_mode()
    def image_to_latent(self, pixels: Float[Tensor, "b 3 hp wp"]) -> Float[Tensor, "b c h w"]:
        return self.movq.encode(pixels.to(self.dtype)).float()

    def _draw(
        self, image_emb: Tensor, prompts: Sequence[str], *, size: tuple[int, int] | None = None, **options: Any
    ) -> list[Image.Image]:
        pixels = self.latent_to_image(self.embedding_to_latent(image_emb, prompts, size=size, **options))
        width, height = size or (self.size, self.size)
        return to_images(pixels[:, :, :height, :width])

    def _latent_shape(self, size: tuple[int, int] | None) -> tuple[int, int, int]:
        width, height = size or (self.size, self.size)
        if min(width, height) < 1:
            raise ValueError(f"size={width}x{height}: sides are at least 1 pixel")
        unit = self.movq.factor * self.decoder.network.factor
        rows, columns = (-(-side // unit) * self.decoder.network.factor for side in (height, width))
        return len(self.decoder.network.standardise.mean), rows, columns

    def _seeds(self, seeds: Sequence[int] | None, n: int) -> Sequence[int]:
        seeds = range(n) if seeds is None else seeds
        if len(seeds) != n:
            raise ValueError(f"{len(seeds)} seeds for {n} images; give one for each")
        check_seeds(seeds)
        return seeds

    def _noise(self, seeds: Sequence[int] | None, n: int, shape: Sequence[int], stream: int = 0) -> PerImageNoise:
        return PerImageNoise([seed ^ stream for seed in self._seeds(seeds, n)], shape, self.device)
