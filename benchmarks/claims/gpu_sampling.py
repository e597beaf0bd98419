"""Text to image at full size on one GPU, with weights of bfloat16, from a caption's states: against diffusers.

Kandinsky 2.1's prior (width 2048), 25 steps; its decoder (384 channels), 50 steps of DDIM; MoVQ, 67M; one picture of
512 px. Ours as it is and compiled (`compile=true`); theirs are KandinskyPriorPipeline and KandinskyPipeline as they
come, of the same random weights and in bfloat16 too. Nothing is measured without a GPU; --quick shows that it runs.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from pairs import ways  # noqa: E402
from text_to_image import Sizes, ours, theirs  # noqa: E402
from timing import Effort, Entry, compared, main  # noqa: E402

FULL, SMALL = Sizes(1, 512, (25, 50), 2048, 384), Sizes(1, 64, (3, 3), 128, 64)
GOAL = 1.6  # that of the same on a CPU


def claims(effort: Effort) -> Iterator[Entry]:
    there = torch.cuda.is_available()
    if not there and not effort.quick:
        return
    sizes, device, dtype = (FULL, "cuda", torch.bfloat16) if there else (SMALL, "cpu", torch.float32)
    with torch.device(device):
        pairs = sizes.pairs()
    for pair in pairs.values():
        pair.ours.to(dtype)
        pair.theirs.to(dtype)
    inputs = sizes.inputs(device, dtype)
    for how, networks in ways(effort, {part: pair.ours for part, pair in pairs.items()}, device):
        with torch.inference_mode():
            a = ours(networks, sizes, *inputs)
            b = theirs(pairs, sizes, *inputs, exact=False)
            yield compared(f"text to image on a GPU, bfloat16, {sizes}, {how}", a, b, GOAL, effort)


if __name__ == "__main__":
    main(claims, __doc__)
