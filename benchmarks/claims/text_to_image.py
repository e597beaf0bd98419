"""A caption's states to pixels: prior of width 512, 25 steps; decoder of 128 channels, 50 steps of DDIM; MoVQ, 256 px.

Against diffusers' KandinskyPriorPipeline and KandinskyPipeline, without their text encoders: both are given the same
states, draws and tables of alpha_bar. Random weights. Ours as it is and compiled (`compile=true`). `error` is of the
pixels.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler, KandinskyPipeline

sys.path.insert(0, str(Path(__file__).parents[1]))

import prior_sampling  # noqa: E402
from pairs import Pair, greatest_error, in_float64, movq, prior, tensors, unet, ways  # noqa: E402
from timing import Effort, Entry, compared, main  # noqa: E402

from open_kandinsky.diffusion.parameterisation import X0, Eps, LearnedRange  # noqa: E402
from open_kandinsky.diffusion.schedule import linear  # noqa: E402
from open_kandinsky.pipeline import Diffusion, Pipeline, Sampling  # noqa: E402

ALPHA_BAR = linear(T=1000, beta_min=0.00085, beta_max=0.012)
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "steps_offset": 1}
SCHEDULER |= {"clip_sample": False, "set_alpha_to_one": False}
CLAMP = 10.0
Run = Callable[[], torch.Tensor]


class Reads:
    """In place of text encoders: every caption's states are given. The last row is the empty caption's."""

    def __init__(self, tokens: torch.Tensor, emb: torch.Tensor, mask: torch.Tensor) -> None:
        self.tokens, self.emb, self.mask = tokens, emb, mask

    def encode_text(self, captions: list[str]) -> Any:
        rows = [*range(len(captions) - 1), len(self.emb) - 1]
        return SimpleNamespace(tokens=self.tokens[rows], emb=self.emb[rows], mask=self.mask[rows])

    def null_image(self) -> torch.Tensor:
        return torch.zeros_like(self.emb[:1])


class Sizes(NamedTuple):
    n: int
    size: int  # pixels a side
    steps: tuple[int, int]
    width: int  # of the prior
    channels: int  # of the decoder

    def pairs(self) -> dict[str, Pair]:
        heads = self.width // 64
        return {"prior": prior(self.width, heads), "decoder": unet(self.channels), "movq": movq("movq_67m")}

    def inputs(self, device: str, dtype: torch.dtype) -> tuple[Reads, Reads, torch.Tensor]:
        """What CLIP and the decoder's text encoder say of the captions, and noise."""
        side = self.size // 8
        shapes = {"z": (self.n, 4, side, side), "tokens": (self.n + 1, 77, 1024), "emb": (self.n + 1, 768)}
        drawn = {name: value.to(device, dtype) for name, value in tensors(shapes).items()}
        tokens, emb, mask = prior_sampling.captions(self.n)
        clip = Reads(tokens.to(device, dtype), emb.to(device, dtype), mask.to(device))
        return clip, Reads(drawn["tokens"], drawn["emb"], clip.mask), drawn["z"].float()

    def __str__(self) -> str:
        return f"{self.channels} channels, {self.steps[0]} + {self.steps[1]} steps, {self.size} px, {self.n} pictures"


def ours(networks: dict[str, Any], sizes: Sizes, clip: Reads, text: Reads, z: torch.Tensor) -> Run:
    of_prior = Sampling(steps=sizes.steps[0], scale=4.0, sampler="ddpm", clamp=CLAMP)
    of_decoder = Sampling(steps=sizes.steps[1], scale=4.0, sampler="ddim", clamp=None)
    tables = (table.to(z.device) for table in (prior_sampling.ALPHA_BAR, ALPHA_BAR))
    pipe = Pipeline(
        clip=clip,  # pyright: ignore[reportArgumentType]
        text=text,
        prior=Diffusion(networks["prior"], next(tables), X0(), of_prior),
        decoder=Diffusion(networks["decoder"], next(tables), LearnedRange(Eps()), of_decoder),
        movq=networks["movq"],
        size=sizes.size,
        device=z.device,
    )
    captions = ["a caption"] * len(z)

    def run() -> torch.Tensor:
        noise = prior_noise(len(captions), z.device)
        image_emb = pipe.text_to_embedding(captions, x_T=next(noise), noise=noise)
        return pipe.latent_to_image(pipe.embedding_to_latent(image_emb, captions, x_T=z))

    return run


def prior_noise(n: int, device: torch.device) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(n, 768, generator=generator).to(device) for _ in iter(int, 1))


def theirs(pairs: dict[str, Pair], sizes: Sizes, clip: Reads, text: Reads, z: torch.Tensor, *, exact: bool) -> Run:
    """`exact`: by our tables of float64, which makes outputs alike; else by their schedulers as they come."""
    n, scheduler = len(z), DDIMScheduler(**SCHEDULER)
    rows = [n] * n + list(range(n))  # their order is empty captions first
    first = prior_sampling.theirs(pairs["prior"], clip.tokens, clip.emb, clip.mask, sizes.steps[0], exact=exact)
    networks = {"unet": pairs["decoder"].theirs, "movq": pairs["movq"].theirs}
    scheduler = in_float64(scheduler, ALPHA_BAR) if exact else scheduler
    pipe = KandinskyPipeline(**networks, scheduler=scheduler, text_encoder=None, tokenizer=None)
    pipe.set_progress_bar_config(disable=True)
    pipe._encode_prompt = lambda *_: (text.emb[rows], text.tokens[rows], None)
    asked = {"height": sizes.size, "width": sizes.size, "num_inference_steps": sizes.steps[1], "guidance_scale": 4.0}

    def run() -> torch.Tensor:
        embs = {"image_embeds": first(), "negative_image_embeds": torch.zeros_like(clip.emb[:n])}
        made: Any = pipe(["a caption"] * n, **embs, **asked, latents=z.to(text.emb.dtype), output_type="pt")
        return made.images.clamp(-1, 1)

    return run


def claims(effort: Effort) -> Iterator[Entry]:
    sizes = Sizes(1, 64, (5, 5), 128, 64) if effort.quick else Sizes(2, 256, (25, 50), 512, 128)
    pairs, inputs = sizes.pairs(), sizes.inputs("cpu", torch.float32)
    few = effort._replace(repeats=min(effort.repeats, 2))  # theirs takes a minute
    for how, networks in ways(effort, {part: pair.ours for part, pair in pairs.items()}):
        with torch.inference_mode():
            a = ours(networks, sizes, *inputs)
            b = theirs(pairs, sizes, *inputs, exact=True)
            yield compared(f"text to image, {sizes}, {how}", a, b, 1.6, few, greatest_error)


if __name__ == "__main__":
    main(claims, __doc__)
