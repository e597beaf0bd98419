"""The assembled system and its modes."""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, Unpack

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from open_kandinsky.data.masks import check_mask, keep_of
from open_kandinsky.data.transforms import to_images
from open_kandinsky.networks.clip import Clip
from open_kandinsky.networks.movq import MoVQ
from open_kandinsky.pipeline.canvas import by_size, check_sides, enlarged, listed, matched, padded
from open_kandinsky.pipeline.diffusion import Diffusion
from open_kandinsky.pipeline.known import Known
from open_kandinsky.pipeline.layer import Layer, seeds_for
from open_kandinsky.pipeline.options import Number, Options, of_decoder, of_prior
from open_kandinsky.pipeline.start import STRENGTH, FromImage, check_strength

Given = dict[str, Any]  # what a latent starts from and what is known of it, as embedding_to_latent takes it


class Pipeline:
    """CLIP, prior, decoder and MoVQ. `text` encodes the decoder's prompts: CLIP itself, another, or None for a decoder
    that reads no text, as Kandinsky 2.2's.

    Modes return a picture each; their `options` are `Options`. What cannot be drawn is a ValueError.
    """

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
        layer = Layer(clip=clip, text=text, prior=prior, decoder=decoder, movq=movq, size=size, device=device)
        self.latent_shape = layer.latent_shape
        self.text_to_embedding, self.image_to_embedding = layer.text_to_embedding, layer.image_to_embedding
        self.embedding_to_latent = layer.embedding_to_latent
        self.latent_to_image, self.image_to_latent = layer.latent_to_image, layer.image_to_latent

    def text_to_image(self, prompts: str | Sequence[str], **options: Unpack[Options]) -> list[Image.Image]:
        """One picture a prompt, of `size` (width, height) in pixels."""
        (prompts,) = matched(prompts=prompts)
        return self._draw(self._imagined(prompts, options), prompts, options)

    def variations(self, image: Image.Image, n: int, **options: Unpack[Options]) -> list[Image.Image]:
        """n pictures of the same CLIP embedding."""
        return self.mix([image], [1.0], n, **options)

    def mix(
        self, parts: Sequence[str | Image.Image], weights: Sequence[Number], n: int = 1, **options: Unpack[Options]
    ) -> list[Image.Image]:
        """n pictures of a weighted sum of embeddings, a text's by the prior. The weights are taken as they are: they
        need not sum to 1.
        """
        check_weights(parts, weights)
        if n < 1:
            raise ValueError(f"n={n}: at least 1 picture")
        return self._weighted(parts, torch.tensor([list(weights)] * n, dtype=torch.float32), options)

    def interpolate(
        self, a: str | Image.Image, b: str | Image.Image, n: int, **options: Unpack[Options]
    ) -> list[Image.Image]:
        """n pictures from embeddings evenly between a's and b's, both included, all from seed 0 unless told otherwise,
        so that the embedding alone moves.
        """
        if n < 2:
            raise ValueError(f"interpolate: n={n}, at least 2: the pictures of both ends")
        return self.between(a, b, [i / (n - 1) for i in range(n)], **options)

    def between(
        self, a: str | Image.Image, b: str | Image.Image, at: Sequence[Number], **options: Unpack[Options]
    ) -> list[Image.Image]:
        """A picture for each place on the way from a's embedding, 0, to b's, 1: some of what `interpolate` draws."""
        there = torch.tensor(at, dtype=torch.float32)
        seeds = options.get("seeds")
        own = options | Options(seeds=[0] * len(at) if seeds is None else seeds)
        return self._weighted([a, b], torch.stack([1 - there, there], dim=1), own)

    def image_to_image(
        self,
        prompt: str | Sequence[str],
        image: Image.Image | Sequence[Image.Image],
        strength: Number = STRENGTH,
        **options: Unpack[Options],
    ) -> list[Image.Image]:
        """Each image redrawn by its prompt, one of either serving for all, at the image's own size.

        `strength` in (0, 1] is how far from the image: of `steps` steps the last int(steps * strength) are walked,
        from the image with the noise of the first of them.
        """
        check_strength(strength)
        prompts, images = matched(prompts=prompt, images=image)
        return self._edited(prompts, images, options, lambda z, rows: {"start": FromImage(z, strength)})

    def inpaint(
        self,
        prompt: str | Sequence[str],
        image: Image.Image | Sequence[Image.Image],
        mask: Image.Image | Sequence[Image.Image],
        **options: Unpack[Options],
    ) -> list[Image.Image]:
        """Each image repainted by its prompt where its mask is white, by an inpainting U-Net or any other.

        What is kept stays in MoVQ's latents: its pixels are those of a reconstruction.
        """
        prompts, images, masks = matched(prompts=prompt, images=image, masks=mask)
        for own, of in zip(masks, images, strict=True):
            check_mask(own, of)

        def known(z: Tensor, rows: list[int]) -> Given:
            grid = {"factor": self.movq.factor, "rows": z.shape[2], "columns": z.shape[3]}
            return {"known": Known(z, torch.stack([keep_of(masks[i], **grid) for i in rows]).to(z))}

        return self._edited(prompts, images, options, known)

    def outpaint(
        self,
        prompt: str | Sequence[str],
        image: Image.Image | Sequence[Image.Image],
        *,
        left: int = 0,
        right: int = 0,
        top: int = 0,
        bottom: int = 0,
        **options: Unpack[Options],
    ) -> list[Image.Image]:
        """Each image with so many pixels more on its sides, painted by its prompt."""
        margins = {"left": left, "right": right, "top": top, "bottom": bottom}
        larger = [enlarged(one, **margins) for one in listed(image)]
        return self.inpaint(prompt, [canvas for canvas, _ in larger], [mask for _, mask in larger], **options)

    def _edited(
        self,
        prompts: Sequence[str],
        images: Sequence[Image.Image],
        options: Options,
        given: Callable[[Tensor, list[int]], Given],  # (z of some images, which) -> what their drawing is given
    ) -> list[Image.Image]:
        """Images of one size at a time; each comes back at its own."""
        if options.get("size") is not None:
            raise ValueError(f"size={options['size']}: an edited picture keeps its image's size; leave size out")
        seeds = seeds_for(len(images), options.get("seeds"))
        for image in images:
            check_sides(*image.size)
        drawn: dict[int, Image.Image] = {}
        for rows in by_size(images):
            texts = [prompts[i] for i in rows]
            own = options | Options(seeds=[seeds[i] for i in rows], size=images[rows[0]].size)
            z = self._latent([images[i] for i in rows])
            drawn |= zip(rows, self._draw(self._imagined(texts, own), texts, own, given(z, rows)), strict=True)
        return [drawn[i] for i in range(len(images))]

    def _latent(self, images: Sequence[Image.Image]) -> Float[Tensor, "b c h w"]:
        """Of images of one size, padded to what the networks divide."""
        _, rows, columns = self.latent_shape(images[0].size)
        pixels = padded(images, rows=rows * self.movq.factor, columns=columns * self.movq.factor)
        return self.image_to_latent(pixels.to(self.device))

    def _weighted(
        self, parts: Sequence[str | Image.Image], weights: Float[Tensor, "n k"], options: Options
    ) -> list[Image.Image]:
        """A picture for each row of weights, one weight for each part."""
        n = len(weights)
        embeddings = [self._imagined([p] * n, options) if isinstance(p, str) else self._seen(p, n) for p in parts]
        image_emb = (weights.to(self.device)[:, :, None] * torch.stack(embeddings, dim=1)).sum(1)
        return self._draw(image_emb, [""] * n, options)

    def _seen(self, image: Image.Image, n: int) -> Float[Tensor, "n d"]:
        return self.image_to_embedding([image]).expand(n, -1)

    def _imagined(self, prompts: Sequence[str], options: Options) -> Float[Tensor, "b d"]:
        return self.text_to_embedding(prompts, seeds=options.get("seeds"), **of_prior(options))

    def _draw(
        self, image_emb: Float[Tensor, "b d"], prompts: Sequence[str], options: Options, given: Given | None = None
    ) -> list[Image.Image]:
        negative = options.get("negative_decoder_prompt", "")
        away = self._imagined([negative] * len(prompts), options) if negative else None
        z = self.embedding_to_latent(
            image_emb, prompts, negative_emb=away, seeds=options.get("seeds"), **of_decoder(options), **(given or {})
        )
        width, height = options.get("size") or (self.size, self.size)
        return to_images(self.latent_to_image(z)[:, :, :height, :width])


def check_weights(parts: Sequence[Any], weights: Sequence[Number]) -> None:
    """ValueError unless there is a finite weight for each part, and one that is not 0."""
    if len(parts) != len(weights):
        raise ValueError(f"mix: {len(parts)} texts and images but {len(weights)} weights; give one weight for each")
    if not any(weights) or not all(map(isfinite, weights)):
        raise ValueError(f"mix: weights {list(weights)}: give finite numbers that are not all 0")
