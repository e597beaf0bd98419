"""Sampling the prior, 25 steps with guidance, 8 captions: against diffusers' KandinskyPriorPipeline without its CLIP.

Same weights, same caption states, same draws, one table of alpha_bar. The prior is causal, so the 78 positions of a
caption are the same at every step: here they are run once, the empty caption's for all pictures, and a step runs the
other three.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import KandinskyPriorPipeline, UnCLIPScheduler

sys.path.insert(0, str(Path(__file__).parents[1]))

from pairs import Pair, greatest_error, in_float64, prior  # noqa: E402
from timing import Effort, Entry, compared, main  # noqa: E402

from open_kandinsky.diffusion.parameterisation import X0  # noqa: E402
from open_kandinsky.diffusion.schedule import cosine  # noqa: E402
from open_kandinsky.pipeline.execution import packed  # noqa: E402
from open_kandinsky.pipeline.sampling import Diffusion, Sampling, guidance_batch

SCHEDULER = {"variance_type": "fixed_small_log", "prediction_type": "sample", "clip_sample_range": 10.0}
GOALS = {128: 8.0, 512: 8.0, 2048: 10.0}  # by width
ALPHA_BAR = cosine(T=1000, s=0.008, beta_max=0.999)
SAMPLING = Sampling(steps=25, scale=4.0, sampler="ddpm", clamp=10.0)


def captions(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States, embeddings and masks of n captions and then of the empty one."""
    g = torch.Generator().manual_seed(2)
    words = torch.cat([torch.randint(5, 30, (n,), generator=g), torch.tensor([2])])
    tokens, emb = torch.randn(n + 1, 77, 768, generator=g), torch.randn(n + 1, 768, generator=g)
    return tokens, emb, torch.arange(77) < words[:, None]


def theirs(pair: Pair, tokens: torch.Tensor, emb: torch.Tensor, mask: torch.Tensor, steps: int = 25, *, exact: bool):
    """Their pipeline's call, given what its text encoder would have said: their order is empty captions first.

    `exact`: by our table of float64, which makes outputs alike; else by their scheduler as it comes.
    """
    scheduler = UnCLIPScheduler(**SCHEDULER)
    made = {"prior": pair.theirs, "scheduler": in_float64(scheduler, ALPHA_BAR) if exact else scheduler}
    pipe = KandinskyPriorPipeline(**made, image_encoder=None, text_encoder=None, tokenizer=None, image_processor=None)
    pipe.set_progress_bar_config(disable=True)
    n = len(tokens) - 1
    swapped = [x[[n] * n + list(range(n))] for x in (emb, tokens, mask)]
    pipe._encode_prompt = lambda *_: swapped
    pipe.get_zero_embed = lambda *_, **__: None
    asked = {"num_inference_steps": steps, "guidance_scale": 4.0, "output_type": "pt"}

    def run() -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return pipe(["a caption"] * n, **asked, generator=generator).image_embeds

    return run


def ours(pair: Pair, tokens: torch.Tensor, emb: torch.Tensor, mask: torch.Tensor):
    network = packed(pair.ours)  # as `load` has it on a CPU
    made = Diffusion(network, ALPHA_BAR, X0(), SAMPLING)
    n = len(tokens) - 1

    def run() -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        draws = (torch.randn(n, 768, generator=generator) for _ in iter(int, 1))
        prefix = guidance_batch(network.prefix(tokens, emb, mask), n, guided=True)
        return made.sample(prefix, next(draws), draws, SAMPLING)

    return run


def claims(effort: Effort) -> Iterator[Entry]:
    n = 2 if effort.quick else 8
    for width in (128,) if effort.quick else (512, 2048):
        pair, text = prior(width, heads=width // 64), captions(n)
        with torch.inference_mode():
            a, b = ours(pair, *text), theirs(pair, *text, exact=True)
            few = effort._replace(repeats=min(effort.repeats, 1 if width == 2048 else 3))  # theirs takes minutes
            told = f"prior sampling, 25 steps, {n} captions, width {width}"
            yield compared(told, a, b, GOALS[width], few, greatest_error)


if __name__ == "__main__":
    main(claims, __doc__)
