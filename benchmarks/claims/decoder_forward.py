"""One evaluation of the decoder's U-Net, 2.1's shape, 256 px: against diffusers' UNet2DConditionModel as it comes.

Same weights, same inputs. The context, which is the same at every step of sampling, is prepared before: diffusers
projects it anew at each step. `error` is the greatest difference over the greatest value.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from pairs import greatest_error, tensors, unet  # noqa: E402
from timing import Effort, Entry, compared, main  # noqa: E402

SHAPES = {"x": (2, 4, 32, 32), "image_emb": (2, 768), "text_emb": (2, 768), "text_tokens": (2, 77, 1024)}
GOALS = {128: (1.5, 3.0), 384: (1.1, 3.0)}  # channels -> float32, bf16 autocast


def at(channels: int, effort: Effort) -> Iterator[Entry]:
    pair, x, t = unet(channels), tensors(SHAPES), torch.tensor([500, 20])
    ours = pair.ours.to(memory_format=torch.channels_last)
    latent = x["x"].to(memory_format=torch.channels_last)
    conditions = {"image_embeds": x["image_emb"], "text_embeds": x["text_emb"]}

    def theirs() -> torch.Tensor:
        return pair.theirs(x["x"], t, x["text_tokens"], added_cond_kwargs=conditions).sample

    for (name, lower), goal in zip({"float32": False, "bf16 autocast": True}.items(), GOALS[channels], strict=True):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=lower):
            context = ours.context(x["image_emb"], x["text_tokens"], x["text_emb"])
            run = lambda: ours(latent, t, context)  # noqa: B023, E731
            made = run().float()
        with torch.inference_mode():
            error = greatest_error(made, theirs())
            entry = compared(
                f"decoder U-Net forward, {channels} channels, {name}", under(run, lower), theirs, goal, effort
            )
        yield entry | {"error": error}


def under(run, lower: bool):
    def lowered() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            return run()

    return lowered


def claims(effort: Effort) -> Iterator[Entry]:
    for channels in (128,) if effort.quick else (128, 384):
        yield from at(channels, effort)


if __name__ == "__main__":
    main(claims, __doc__)
