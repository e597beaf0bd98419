"""MoVQ's encoder and decoder, Kandinsky's 67M, 256 px: against diffusers' VQModel. Same weights, same pictures.

Ours as it is and compiled (`compile=true`). `error` is the greatest difference over the greatest value.
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from pairs import greatest_error, movq, tensors, ways  # noqa: E402
from timing import Effort, Entry, compared, main  # noqa: E402


def error(ours: torch.Tensor, theirs: Any) -> float:
    """Theirs are outputs with a name: latents or pixels."""
    return greatest_error(ours, theirs[0])


def claims(effort: Effort) -> Iterator[Entry]:
    (plain, theirs), side = movq("movq_67m"), 64 if effort.quick else 256
    x = tensors({"pixels": (2, 3, side, side), "z": (2, 4, side // 8, side // 8)})
    for how, made in ways(effort, {"movq": plain}):
        ours = made["movq"]
        turns = {
            "encode": (partial(ours.encode, x["pixels"]), partial(theirs.encode, x["pixels"])),
            "decode": (partial(ours.decode, x["z"]), partial(theirs.decode, x["z"], force_not_quantize=True)),
        }
        with torch.inference_mode():
            for name, (a, b) in turns.items():
                told = f"MoVQ {name}, 67M, {side} px, 2 pictures, float32, {how}"
                yield compared(told, a, b, 1.3, effort, error)


if __name__ == "__main__":
    main(claims, __doc__)
