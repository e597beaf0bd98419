"""A caption's states to pixels: prior of width 512, 25 steps; decoder of 128 channels, 50 steps of DDIM; MoVQ, 256 px.

Against diffusers' KandinskyPriorPipeline and KandinskyPipeline, without their text encoders: both are given the same
states, draws and tables of alpha_bar. Random weights. Ours as it is and compiled (`compile=true`). `error` is of the
pixels.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
        return torch.zeros(1, 768)


def ours(networks: dict[str, Any], steps: tuple[int, int], size: int, clip: Reads, text: Reads, drawn: Any) -> Run:
    of_prior = Sampling(steps=steps[0], scale=4.0, sampler="ddpm", clamp=CLAMP)
    of_decoder = Sampling(steps=steps[1], scale=4.0, sampler="ddim", clamp=None)
    pipe = Pipeline(
        clip=clip,  # pyright: ignore[reportArgumentType]
        text=text,
        prior=Diffusion(networks["prior"], prior_sampling.ALPHA_BAR, X0(), of_prior),
        decoder=Diffusion(networks["decoder"], ALPHA_BAR, LearnedRange(Eps()), of_decoder),
        movq=networks["movq"],
        size=size,
        device="cpu",
    )
    captions = ["a caption"] * len(drawn["z"])

    def run() -> torch.Tensor:
        noise = prior_noise(len(captions))
        image_emb = pipe.text_to_embedding(captions, x_T=next(noise), noise=noise)
        return pipe.latent_to_image(pipe.embedding_to_latent(image_emb, captions, x_T=drawn["z"]))

    return run


def prior_noise(n: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(n, 768, generator=generator) for _ in iter(int, 1))


def theirs(pairs: dict[str, Pair], steps: tuple[int, int], size: int, clip: Reads, text: Reads, drawn: Any) -> Run:
    n = len(drawn["z"])
    rows = [n] * n + list(range(n))  # their order is empty captions first
    first = prior_sampling.theirs(pairs["prior"], clip.tokens, clip.emb, clip.mask, steps[0])
    networks = {"unet": pairs["decoder"].theirs, "movq": pairs["movq"].theirs}
    scheduler = in_float64(DDIMScheduler(**SCHEDULER), ALPHA_BAR)
    pipe = KandinskyPipeline(**networks, scheduler=scheduler, text_encoder=None, tokenizer=None)
    pipe.set_progress_bar_config(disable=True)
    pipe._encode_prompt = lambda *_: (text.emb[rows], text.tokens[rows], None)
    asked = {"height": size, "width": size, "num_inference_steps": steps[1], "guidance_scale": 4.0}

    def run() -> torch.Tensor:
        embs = {"image_embeds": first(), "negative_image_embeds": clip.null_image().expand(n, -1)}
        made: Any = pipe(["a caption"] * n, **embs, **asked, latents=drawn["z"], output_type="pt")
        return made.images.clamp(-1, 1)

    return run


def claims(effort: Effort) -> Iterator[Entry]:
    n, size, steps, width, channels = (1, 64, (5, 5), 128, 64) if effort.quick else (2, 256, (25, 50), 512, 128)
    pairs = {"prior": prior(width, heads=width // 64), "decoder": unet(channels), "movq": movq("movq_67m")}
    side = size // 8
    shapes = {"z": (n, 4, side, side), "tokens": (n + 1, 77, 1024), "emb": (n + 1, 768)}
    drawn = tensors(shapes)
    clip = Reads(*prior_sampling.captions(n))
    text = Reads(drawn["tokens"], drawn["emb"], clip.mask)
    few = effort._replace(repeats=min(effort.repeats, 2))  # theirs takes a minute
    for how, networks in ways(effort, {part: pair.ours for part, pair in pairs.items()}):
        with torch.inference_mode():
            a, b = ours(networks, steps, size, clip, text, drawn), theirs(pairs, steps, size, clip, text, drawn)
            sizes = f"{channels} channels, {steps[0]} + {steps[1]} steps, {size} px, {n} pictures"
            yield compared(f"text to image, {sizes}, {how}", a, b, 1.6, few, greatest_error)


if __name__ == "__main__":
    main(claims, __doc__)
