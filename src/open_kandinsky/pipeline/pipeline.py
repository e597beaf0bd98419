"""A text-to-image system: its networks one by one, and the modes that make pictures with them.

Each image has a seed, and two streams of noise by it, the prior's and the decoder's, so that image i is the same in
any batch.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.masks import check_mask, keep_of
from open_kandinsky.data.transforms import ClipPixels, to_output
from open_kandinsky.diffusion.samplers import PerImageNoise, check_seeds
from open_kandinsky.networks.clip import Clip
from open_kandinsky.networks.movq import MoVQ
from open_kandinsky.pipeline import execution
from open_kandinsky.pipeline import options as opts
from open_kandinsky.pipeline.options import OF_PRIOR, Number, Options, as_list, broadcast_lists, sides, with_options
from open_kandinsky.pipeline.sampling import (
    FROM_NOISE,
    STRENGTH,
    Diffusion,
    FromImage,
    InpaintCondition,
    Noise,
    SamplingProgress,
    Start,
    Watch,
    check_strength,
    guidance_batch,
)

logger = logging.getLogger(__name__)

PRIOR_STREAM = 0x9E3779B9  # xor'ed to a seed: the prior's noise differs from the decoder's


class Pipeline:
    """CLIP, a prior, a decoder and MoVQ, and the modes that make pictures with them.

        pipe = open_kandinsky.load("runs/quickstart")
        [image] = pipe("a large yellow triangle on a purple background", seeds=[3])

    Modes return a list of pictures. All modes take these options:

    - size: pixels, a side or (width, height); None as the decoder was trained
    - seeds: one for each picture; None 0, 1, 2, ...
    - steps, scale, sampler: of the decoder; prior_steps, prior_scale, prior_sampler: of the prior; None as trained
    - negative_prompt: what the prior is guided away from; negative_decoder_prompt: what the decoder is
    - callback: called with a `Step` (part, index, total, x_0) after each call of a network; it cancels by raising
    - output_type: "pil"; "np" [h w 3] or "pt" [3 h w] in [0, 1]; "latent" [c h w], of a padded size

    A value that cannot be used is a ValueError, an unknown option a TypeError; both name a remedy.
    `text` encodes the decoder's prompts: CLIP itself, another encoder, or None for a decoder that reads no text, as
    Kandinsky 2.2's. `progress`: whether a bar is shown; None: only in a terminal.
    """

    progress: bool | None = None

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
        movable: bool = True,
    ) -> None:
        self.clip, self.text, self.prior, self.decoder, self.movq = clip, text, prior, decoder, movq
        self.size, self.device, self.movable = size, device, movable
        self._warned_sizes: set[tuple[int, int]] = set()
        self.dtype = next(movq.parameters()).dtype  # of the weights; noise and x_t stay float32

    def __repr__(self) -> str:
        parts = {"clip": self.clip, "prior": self.prior.network, "decoder": self.decoder.network, "movq": self.movq}
        if self.text is not None and self.text is not self.clip:
            parts["text"] = self.text
        lines = [
            f"  {name}: {type(part).__name__}, {sum(p.numel() for p in part.parameters()):,} parameters"
            for name, part in parts.items()
        ]
        lines += [f"  {name}: {getattr(self, name).sampling}" for name in ("prior", "decoder")]
        dtype = str(self.dtype).removeprefix("torch.")
        return "\n".join([f"Pipeline of {self.size} px, on {self.device} in {dtype}", *lines])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Pipeline":
        """Move all networks, in place; returns the pipeline itself. Statistics and schedules keep their precision.

        ValueError for networks that are compiled, offloaded or on several devices: `load` places those.
        """
        if not self.movable:
            raise UserError("compiled, offloaded or on several devices: load(source, device=..., dtype=...) anew")
        device = self.device if device is None else device
        networks = [self.clip, self.prior.network, self.decoder.network, self.movq]
        networks += [self.text] if self.text is not None and self.text is not self.clip else []
        for network in networks:
            execution.move(network, device, dtype)
        self.prior, self.decoder = (replace(p, alpha_bar=p.alpha_bar.to(device)) for p in (self.prior, self.decoder))
        self.device, self.dtype = device, dtype or self.dtype
        return self

    # ---- the networks one by one

    @torch.inference_mode()
    def text_to_embedding(
        self,
        prompts: str | Sequence[str],
        *,
        negative_prompt: str = "",
        steps: int | None = None,
        scale: Number | None = None,
        sampler: str | None = None,
        seeds: int | Sequence[int] | None = None,
        x_T: Float[Tensor, "b d"] | None = None,
        noise: Noise | None = None,
        watch: Watch | None = None,
    ) -> Float[Tensor, "b d"]:
        """Prompts to CLIP image embeddings by the prior, guided away from `negative_prompt`."""
        prompts = as_list(prompts)
        sampling = self.prior.sampling.but(steps=steps, scale=scale, sampler=sampler)
        guided = sampling.scale != 1
        text = self.clip.encode_text([*prompts, *[negative_prompt] * guided])
        network = self.prior.network
        shape = network.standardise.mean.shape
        x_T, noise = self._noise(seeds, len(prompts), shape, x_T, noise, stream=PRIOR_STREAM)
        prefix = guidance_batch(network.prefix(text.tokens, text.emb, text.mask), len(prompts), guided)
        return self.prior.sample(prefix, x_T, noise, sampling, watch=watch)

    @torch.inference_mode()
    def image_to_embedding(self, images: Image.Image | Sequence[Image.Image]) -> Float[Tensor, "b d"]:
        """Pictures of any size from 8 pixels a side to CLIP embeddings, as CLIP crops and scales them."""
        height, width = self.clip.image_size
        assert height == width, "CLIP's image is square"
        pictures = [opts.picture(image) for image in as_list(images)]
        for image in pictures:
            opts.check_sides(*image.size, largest=None)
        prepared = torch.stack([ClipPixels(size=width)(image) for image in pictures])
        return self.clip.encode_image(prepared.to(self.device, self.dtype)).float()

    @torch.inference_mode()
    def embedding_to_latent(
        self,
        image_emb: Float[Tensor, "b d"],
        prompts: str | Sequence[str] | None = None,
        *,
        negative_emb: Float[Tensor, "b d"] | None = None,
        size: int | tuple[int, int] | None = None,
        start: Start = FROM_NOISE,
        inpaint: InpaintCondition | None = None,
        steps: int | None = None,
        scale: Number | None = None,
        sampler: str | None = None,
        seeds: int | Sequence[int] | None = None,
        x_T: Float[Tensor, "b c h w"] | None = None,
        noise: Noise | None = None,
        watch: Watch | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Embeddings and prompts (None: empty ones) to MoVQ latents by the decoder.

        Sides are rounded up to multiples that the U-Net can halve. Guidance is away from the empty prompt and from
        `negative_emb`; None stands for CLIP's embedding of the null image.
        """
        n = len(image_emb)
        prompts = [""] * n if prompts is None else as_list(prompts)
        sampling = self.decoder.sampling.but(steps=steps, scale=scale, sampler=sampler)
        network = self.decoder.network
        x_T, noise = self._noise(seeds, n, self.latent_shape(size), x_T, noise)
        inpaint = InpaintCondition.all_painted(x_T) if inpaint is None else inpaint
        guided = sampling.scale != 1
        if guided:
            negative = self.clip.null_image().expand_as(image_emb) if negative_emb is None else negative_emb
            image_emb = torch.cat([image_emb, negative])
        context = network.context(image_emb.to(self.dtype), *self._text(prompts, guided))
        z = self.decoder.sample(context, x_T, noise, sampling, start=start, inpaint=inpaint, watch=watch)
        return inpaint.restore(z)

    @torch.inference_mode()
    def latent_to_image(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 hp wp"]:
        """Latents to pixels in [-1, 1]."""
        return self.movq.decode(z.to(self.dtype)).float().clamp(-1, 1)

    @torch.inference_mode()
    def image_to_latent(self, pixels: Float[Tensor, "b 3 hp wp"]) -> Float[Tensor, "b c h w"]:
        """Pixels in [-1, 1] to latents."""
        return self.movq.encode(pixels.to(self.dtype)).float()

    def latent_shape(self, size: int | tuple[int, int] | None = None) -> tuple[int, int, int]:
        """Channels, rows and columns of the latent of a picture of `size` in pixels; None: of the usual size."""
        width, height = sides(size) or (self.size, self.size)
        rows, columns = (-(-side // self.multiple) * self.decoder.network.factor for side in (height, width))
        return len(self.decoder.network.standardise.mean), rows, columns

    @property
    def multiple(self) -> int:
        """Pixels. Pictures of other sides than its multiples are drawn larger and cropped."""
        return self.movq.factor * self.decoder.network.factor

    def _text(self, prompts: Sequence[str], guided: bool) -> tuple[Tensor | None, Tensor | None]:
        """States and embedding of the decoder's prompts and, for guidance, of as many empty ones."""
        if self.text is None:
            return None, None
        text = self.text.encode_text([*prompts, ""])
        rows = [*range(len(prompts))] + [len(prompts)] * (len(prompts) * guided)
        return text.tokens[rows], text.emb[rows]

    def _noise(
        self,
        seeds: int | Sequence[int] | None,
        n: int,
        shape: Sequence[int],
        x_T: Tensor | None,
        noise: Noise | None,
        stream: int = 0,
    ) -> tuple[Tensor, Noise]:
        """x_T and the noise of later steps: the caller's where given, else drawn by the seeds."""
        seeds = opts.seeds_for(n, seeds)
        check_seeds(seeds)
        drawn = PerImageNoise([seed ^ stream for seed in seeds], shape, self.device)
        return next(drawn) if x_T is None else x_T, drawn if noise is None else noise

    # ---- the modes

    @with_options
    def text_to_image(self, prompts: str | Sequence[str], **options: Unpack[Options]) -> list[Any]:
        """One picture a prompt."""
        (prompts,) = broadcast_lists(prompts=prompts)
        return self._draw(self._prior_embedding(prompts, options), prompts, options)

    __call__ = text_to_image

    @with_options
    def variations(self, image: Image.Image, n: int = 1, **options: Unpack[Options]) -> list[Any]:
        """n pictures of the same CLIP embedding."""
        return self.mix([image], [1.0], n, **options)

    @with_options
    def mix(
        self, parts: Sequence[str | Image.Image], weights: Sequence[Number], n: int = 1, **options: Unpack[Options]
    ) -> list[Any]:
        """n pictures of a weighted sum of embeddings, a text's by the prior; weights need not sum to 1."""
        parts, weights = as_list(parts), as_list(weights)
        opts.check_weights(parts, weights)
        return self._weighted(parts, torch.tensor([weights] * opts.at_least_one("n", n), dtype=torch.float32), options)

    @with_options
    def interpolate(
        self, a: str | Image.Image, b: str | Image.Image, n: int = 5, **options: Unpack[Options]
    ) -> list[Any]:
        """n pictures from embeddings evenly between a's and b's, both included. `seeds` is 0 for all of them, so that
        only the embedding changes.
        """
        if n < 2:
            raise UserError(f"interpolate: n={n}, at least 2: the pictures of both ends")
        return self.between(a, b, [i / (n - 1) for i in range(n)], **options)

    @with_options
    def between(
        self, a: str | Image.Image, b: str | Image.Image, at: Sequence[Number], **options: Unpack[Options]
    ) -> list[Any]:
        """A picture for each place `at`, from 0 at a's embedding to 1 at b's: some pictures of `interpolate`."""
        to_b = torch.tensor([opts.finite("at", place) for place in as_list(at)], dtype=torch.float32)
        seeds = options.get("seeds")
        options = options | Options(seeds=[0] * len(to_b) if seeds is None else seeds)
        return self._weighted([a, b], torch.stack([1 - to_b, to_b], dim=1), options)

    @with_options
    def image_to_image(
        self,
        prompt: str | Sequence[str],
        image: Image.Image | Sequence[Image.Image],
        strength: Number = STRENGTH,
        **options: Unpack[Options],
    ) -> list[Any]:
        """Each image redrawn by its prompt, one of either serving for all, at the image's own size.

        `strength` in (0, 1] is how far from the image: of `steps` steps the last int(steps * strength) are taken,
        from the image with the noise of the first of them.
        """
        check_strength(strength)
        prompts, images = broadcast_lists(prompts=prompt, images=image)
        return self._edited(prompts, images, options, lambda z, rows: {"start": FromImage(z, strength)})

    @with_options
    def inpaint(
        self,
        prompt: str | Sequence[str],
        image: Image.Image | Sequence[Image.Image],
        mask: Image.Image | Sequence[Image.Image],
        **options: Unpack[Options],
    ) -> list[Any]:
        """Each image repainted by its prompt where its mask is white, by an inpainting U-Net or any other.

        The rest is kept in MoVQ's latents: its pixels are those of a reconstruction.
        """
        prompts, images, masks = broadcast_lists(prompts=prompt, images=image, masks=mask)
        for one_mask, one_image in zip(masks, images, strict=True):
            check_mask(one_mask, one_image)

        def condition(z: Tensor, rows: list[int]) -> dict[str, Any]:
            grid = {"factor": self.movq.factor, "rows": z.shape[2], "columns": z.shape[3]}
            return {"inpaint": InpaintCondition(z, torch.stack([keep_of(masks[i], **grid) for i in rows]).to(z))}

        return self._edited(prompts, images, options, condition)

    @with_options
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
    ) -> list[Any]:
        """Each image with margins added, in pixels, which are painted by its prompt."""
        margins = {"left": left, "right": right, "top": top, "bottom": bottom}
        larger = [opts.outpaint_canvas(one, **margins) for one in as_list(image)]
        return self.inpaint(prompt, [canvas for canvas, _ in larger], [mask for _, mask in larger], **options)

    def _edited(
        self,
        prompts: Sequence[str],
        images: Sequence[Image.Image],
        options: Options,
        edit: Callable[[Tensor, list[int]], dict[str, Any]],  # (z of some images, which) -> for embedding_to_latent
    ) -> list[Any]:
        """Images of one size at a time; each comes back at its own size."""
        if options.get("size") is not None:
            raise UserError(f"size={options['size']}: an edited picture keeps its image's size; leave size out")
        seeds = opts.seeds_for(len(images), options.get("seeds"))
        for image in images:
            opts.check_sides(*image.size)
        drawn: dict[int, Any] = {}
        for rows in opts.indices_by_size(images):
            texts, size = [prompts[i] for i in rows], images[rows[0]].size
            of_rows = options | Options(seeds=[seeds[i] for i in rows], size=size)
            _, h, w = self.latent_shape(size)
            pixels = opts.padded([images[i] for i in rows], rows=h * self.movq.factor, columns=w * self.movq.factor)
            arguments = edit(self.image_to_latent(pixels.to(self.device)), rows)
            embedding = self._prior_embedding(texts, of_rows)
            drawn |= zip(rows, self._draw(embedding, texts, of_rows, arguments), strict=True)
        return [drawn[i] for i in range(len(images))]

    def _weighted(
        self, parts: Sequence[str | Image.Image], weights: Float[Tensor, "n k"], options: Options
    ) -> list[Any]:
        """A picture for each row of weights, one weight for each part."""
        n = len(weights)
        embeddings = [
            self._prior_embedding([part] * n, options) if isinstance(part, str) else self.image_to_embedding(part)
            for part in parts
        ]
        stacked = torch.stack([embedding.expand(n, -1) for embedding in embeddings], dim=1)
        return self._draw((weights.to(self.device)[:, :, None] * stacked).sum(1), [""] * n, options)

    def _prior_embedding(self, prompts: Sequence[str], options: Options) -> Float[Tensor, "b d"]:
        chosen = {name: options[key] for key, name in OF_PRIOR.items() if options.get(key) is not None}
        with SamplingProgress("prior", options.get("callback"), self.progress) as watch:
            return self.text_to_embedding(prompts, seeds=options.get("seeds"), watch=watch, **chosen)

    def _draw(
        self,
        image_emb: Float[Tensor, "b d"],
        prompts: Sequence[str],
        options: Options,
        edit: dict[str, Any] | None = None,  # more arguments for embedding_to_latent
    ) -> list[Any]:
        output = options.get("output_type", "pil")
        negative = options.get("negative_decoder_prompt", "")
        negative_emb = self._prior_embedding([negative] * len(prompts), options) if negative else None
        chosen = {name: options[name] for name in ("size", "steps", "scale", "sampler", "seeds") if name in options}
        with SamplingProgress("decoder", options.get("callback"), self.progress) as watch:
            more: dict[str, Any] = {**chosen, **(edit or {})}
            z = self.embedding_to_latent(image_emb, prompts, negative_emb=negative_emb, watch=watch, **more)
        if output == "latent":
            return list(z)
        width, height = sides(options.get("size")) or (self.size, self.size)
        if not edit and (width % self.multiple or height % self.multiple):
            self._warn_of_cropping(width, height)
        return to_output(self.latent_to_image(z)[:, :, :height, :width], output)

    def _warn_of_cropping(self, width: int, height: int) -> None:
        """Warn once for each size that it is drawn larger and cropped."""
        if (width, height) not in self._warned_sizes:
            self._warned_sizes.add((width, height))
            rows, columns = (-(-side // self.multiple) * self.multiple for side in (height, width))
            text = "size=%dx%d is drawn as %dx%d and cropped: sides that are multiples of %d are drawn as they are"
            logger.warning(text, width, height, columns, rows, self.multiple)
