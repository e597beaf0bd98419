"""A folder of original 2.1 files, or one of them: what each is called, and how its part was trained.

prior_fp16.ckpt with ViT-L-14_stats.th, decoder_fp16.ckpt or inpainting_fp16.ckpt, movq_final.ckpt, text_encoder/.
Their CLIP is OpenAI's, which they do not hold: `clip/`, a folder of transformers' CLIPModel, stands beside them.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from open_kandinsky.core.errors import UserError
from open_kandinsky.weights import store
from open_kandinsky.weights.diffusers import folder as hugging
from open_kandinsky.weights.kandinsky21 import keys, movqgan, structure
from open_kandinsky.weights.keymap import KeyMap, Rules, State
from open_kandinsky.weights.part import Part, Picked

FILES = {
    "prior": "prior_fp16.ckpt",
    "decoder": "decoder_fp16.ckpt",
    "movq": "movq_final.ckpt",
    "text": "text_encoder/config.json",
    "clip": "clip/config.json",
}
STATISTICS = "ViT-L-14_stats.th"
IMAGE_SIZE = 768  # pixels a side: what the decoder was tuned for
DIFFUSION = "open_kandinsky.diffusion"
COSINE = {"_target_": f"{DIFFUSION}.schedule.cosine", "T": 1000, "s": 0.008, "beta_max": 0.999}
LINEAR = {"_target_": f"{DIFFUSION}.schedule.linear", "T": 1000, "beta_min": 0.00085, "beta_max": 0.012}
X0, EPS = ({"_target_": f"{DIFFUSION}.parameterisation.{name}"} for name in ("X0", "Eps"))
LEARNED_RANGE = {"_target_": f"{DIFFUSION}.parameterisation.LearnedRange", "mean": EPS}
Pick = Callable[[State], Picked]  # of a checkpoint's tensors, those of the network


def find(part: str, folder: Path, pick: Pick = movqgan.raw) -> Part | None:
    """The part in `folder`, or in the file that `folder` names; None where there is none.

    ValueError where it is damaged or another network's. `pick` is asked for MoVQ's weights only.
    """
    path = folder if folder.is_file() else folder / FILES[part]
    if not path.is_file() or path.name == store.WEIGHTS:
        return None
    if part in ("clip", "text"):
        return hugging.find(part, path.parent)
    return {"prior": prior, "decoder": decoder, "movq": partial(movq, pick=pick)}[part](path)


def prior(path: Path) -> Part:
    statistics = path.parent / STATISTICS
    network = understood(path, structure.prior)
    dims = {
        "clip": network["image_dim"],
        "clip_text_width": network["text_width"],
        "text_length": network["text_length"],
    }
    rules = keys.prior(layers=network["layers"], head_channels=structure.HEAD_CHANNELS)
    stage = {"network": network, "alpha_bar": COSINE, "parameterisation": X0}

    def read(like: State) -> Picked:
        return Picked(KeyMap(rules, like).to_ours({**store.read_any(path), **read_statistics(statistics)}), {})

    return Part(path.parent, (path, statistics), {"dims": dims, "stage": stage, "sampling": {}}, read)


def decoder(path: Path) -> Part:
    network = understood(path, structure.unet)
    condition = network["condition"]
    dims = {
        "clip": condition["image_dim"],
        "latent_channels": network["latent_channels"],
        "context": network["context"],
    }
    dims |= {"decoder_text_width": condition["text_width"], "decoder_text": condition["text_dim"]}
    dims |= {"image_size": IMAGE_SIZE}
    levels = {"levels": len(network["multipliers"]), "attention_levels": network["attention_levels"]}
    rules = keys.unet(**levels, blocks=network["blocks"], head_channels=structure.HEAD_CHANNELS)
    stage = {"network": network, "alpha_bar": LINEAR, "parameterisation": LEARNED_RANGE}
    return Part(path.parent, (path,), {"dims": dims, "stage": stage, "sampling": {}}, renamed(path, rules))


def movq(path: Path, pick: Pick) -> Part:
    network = understood(path, structure.movq)
    dims = {"latent_channels": network["latent_channels"], "quantise_latents": network["quantise_latents"]}
    levels = {"levels": len(network["multipliers"]), "attention_levels": network["attention_levels"]}
    rules = keys.movq(**levels, blocks=network["blocks"])

    def read(like: State) -> Picked:
        state, dropped = pick(store.read_any(path))
        return Picked(KeyMap(rules, like).to_ours(state), dropped)

    return Part(path.parent, (path,), {"dims": dims, "stage": {"network": network}, "sampling": {}}, read, True)


def renamed(path: Path, rules: Rules) -> Callable[[State], Picked]:
    return lambda like: Picked(KeyMap(rules, like).to_ours(store.read_any(path)), {})


def understood(path: Path, read: Callable[[State], dict[str, Any]]) -> dict[str, Any]:
    """A checkpoint's structure. ValueError where a tensor that tells it is not there, or is of no such shape."""
    state = store.read_any(path)
    try:
        return read(state)
    except (KeyError, ValueError, ZeroDivisionError, IndexError) as error:
        near = ", ".join(sorted(state)[:3])
        raise UserError(f"{path}: not the {read.__name__} of Kandinsky 2.1: {error}; it begins with {near}") from error


def read_statistics(path: Path) -> dict[str, torch.Tensor]:
    """CLIP's mean and standard deviation over the training set, by the names that the rules know."""
    found = store.unpickled(path)
    if not isinstance(found, tuple | list) or len(found) != 2 or not all(isinstance(x, torch.Tensor) for x in found):
        raise UserError(f"{path}: expected a pair of tensors, mean and std; found {type(found).__name__}")
    return {name: x.float() for name, x in zip(keys.STATISTICS, found, strict=True)}
