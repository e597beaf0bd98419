"""MoVQ of standardised latents: what an export needs whose U-Net models (z - mean) / std.

diffusers hands the U-Net's latents to MoVQ as they are. MoVQ reads and writes them through 1x1 convolutions alone, so
that the statistics go into these, without loss but for rounding.
"""

import torch
from torch import Tensor

from open_kandinsky.weights.keymap import State


def standardised(movq: State, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """Weights of the MoVQ whose latent is (z - mean) / std where the given one's is z."""
    if not bool(mean.any()) and bool((std == 1).all()):
        return dict(movq)
    mean, std = mean.double(), std.double()
    made = {}
    for module in readers(movq):
        weight, bias = (movq[f"{module}.{leaf}"].double() for leaf in ("weight", "bias"))
        made[f"{module}.bias"] = bias + weight[:, :, 0, 0] @ mean
        made[f"{module}.weight"] = weight * std[:, None, None]
    made["quant.weight"] = movq["quant.weight"].double() / std[:, None, None, None]
    made["quant.bias"] = (movq["quant.bias"].double() - mean) / std
    made["codebook.embedding.weight"] = (movq["codebook.embedding.weight"].double() - mean) / std
    return {**movq, **{key: x.to(movq[key].dtype) for key, x in made.items()}}


def readers(movq: State) -> list[str]:
    """The convolutions that z goes into."""
    spatial = [key.removesuffix(".weight") for key in movq if key.endswith((".scale.weight", ".shift.weight"))]
    return ["post_quant", *spatial]


def identity(decoder: State) -> dict[str, Tensor]:
    """The U-Net's weights without its statistics, which are MoVQ's now."""
    zero, one = torch.zeros_like(decoder["standardise.mean"]), torch.ones_like(decoder["standardise.std"])
    return {**decoder, "standardise.mean": zero, "standardise.std": one}
