"""One evaluation of the decoder's U-Net, 2.1's shape, 256 px: against diffusers' UNet2DConditionModel as it comes.

Same weights, same inputs. The context, which is the same at every step of sampling, is prepared before: diffusers
projects it anew at each step. Ours in float32 and with weights of bfloat16 (`dtype=bfloat16`), as it is and compiled
(`compile=true`), beside theirs in float32. `error` is the greatest difference over the greatest value.
"""

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from pairs import greatest_error, tensors, unet, ways  # noqa: E402
from timing import Effort, Entry, compared, main  # noqa: E402

from open_kandinsky.networks.unet import UNet  # noqa: E402

SHAPES = {"x": (2, 4, 32, 32), "image_emb": (2, 768), "text_emb": (2, 768), "text_tokens": (2, 77, 1024)}
GOALS = {128: (1.5, 3.0), 384: (1.1, 3.0)}  # channels -> float32, bfloat16
T = torch.tensor([500, 20])


def forward(network: UNet, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    x = {name: value.to(dtype) for name, value in tensors(SHAPES).items()}
    context = network.context(x["image_emb"], x["text_tokens"], x["text_emb"])
    return lambda: network(x["x"], T, context).float()


def claims(effort: Effort) -> Iterator[Entry]:
    for channels in (64,) if effort.quick else (128, 384):
        for dtype, goal in zip((torch.float32, torch.bfloat16), GOALS.get(channels, (1.0, 1.0)), strict=True):
            yield from at(channels, dtype, goal, effort)


def at(channels: int, dtype: torch.dtype, goal: float, effort: Effort) -> Iterator[Entry]:
    """Networks of its own: at 384 channels each is 5 GB, where what is compiled would be held twice."""
    pair, x = unet(channels), tensors(SHAPES)
    ours = pair.ours.to(dtype)
    added = {"image_embeds": x["image_emb"], "text_embeds": x["text_emb"]}
    theirs = lambda: pair.theirs(x["x"], T, x["text_tokens"], added_cond_kwargs=added).sample  # noqa: E731
    for how, made in islice(ways(effort, {"decoder": ours}), 1 if channels == 384 else None):
        with torch.inference_mode():
            run = forward(made["decoder"], dtype)
            told = f"decoder U-Net forward, {channels} channels, {str(dtype).removeprefix('torch.')}, {how}"
            yield compared(told, run, theirs, goal, effort, greatest_error)
    torch._dynamo.reset()


if __name__ == "__main__":
    main(claims, __doc__)
