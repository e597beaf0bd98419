"""Finds parts in a folder of original Kandinsky 2.1 files, or in one of the files.

prior_fp16.ckpt with ViT-L-14_stats.th, decoder_fp16.ckpt or inpainting_fp16.ckpt, movq_final.ckpt, text_encoder/.
Their CLIP is OpenAI's, which is not among them: `clip/`, a folder of transformers' CLIPModel, is added to the folder.

The files hold weights alone, so that a network's structure is read off their names and shapes (`prior_config`, ...).
A checkpoint of MoVQGAN's training also holds averaged weights, and critics, which are dropped (`raw`, `ema`).
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from open_kandinsky.core.errors import UserError
from open_kandinsky.weights import store
from open_kandinsky.weights.diffusers import folder as diffusers
from open_kandinsky.weights.kandinsky21 import keys
from open_kandinsky.weights.keymap import KeyMap, State
from open_kandinsky.weights.part import Part, Picked

HEAD_CHANNELS = 64  # of each attention of 2.1's prior and U-Net: it cannot be seen in shapes
NETWORKS = "open_kandinsky.networks"


def prior_config(theirs: State) -> dict[str, Any]:
    width, text_width = theirs["model.text_enc_proj.weight"].shape
    return {
        "_target_": f"{NETWORKS}.prior.DiffusionPrior",
        "image_dim": theirs["model.out_proj.weight"].shape[0],
        "text_dim": theirs["model.text_emb_proj.weight"].shape[1],
        "text_width": text_width,
        "text_length": theirs["model.positional_embedding"].shape[1] - 4,
        "width": width,
        "layers": count(theirs, r"model\.transformer\.resblocks\.(\d+)\."),
        "heads": width // HEAD_CHANNELS,
    }


def unet_config(theirs: State) -> dict[str, Any]:
    """A level has blocks + 1 indices on the way down and up; each but the last ends its way up with a doubling."""
    channels, in_channels = theirs["input_blocks.0.0.weight"].shape[:2]
    levels = count(theirs, r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.weight") + 1  # the doublings, and one
    blocks = count(theirs, r"output_blocks\.(\d+)\.") // levels - 1
    firsts = [1 + level * (blocks + 1) for level in range(levels)]
    widths = [theirs[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] for i in firsts]
    context, text_width = theirs["to_model_dim_n.weight"].shape
    emb, text_dim = theirs["proj_n.weight"].shape
    condition = {
        "_target_": f"{NETWORKS}.condition.TextImageCondition",
        "image_dim": theirs["img_layer.weight"].shape[1],
        "text_width": text_width,
        "text_dim": text_dim,
        "image_tokens": theirs["clip_to_seq.weight"].shape[0] // context,
        "context": context,
        "emb": emb,
    }
    return {
        "_target_": f"{NETWORKS}.unet.UNet",
        "condition": condition,
        "in_channels": in_channels,
        "out_channels": theirs["out.2.weight"].shape[0],
        "latent_channels": theirs["out.2.weight"].shape[0] // 2,
        "channels": channels,
        "multipliers": [width // channels for width in widths],
        "blocks": blocks,
        "attention_levels": [level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in theirs],
        "head_channels": HEAD_CHANNELS,
        "context": context,
        "emb": emb,
    }


def movq_config(theirs: State) -> dict[str, Any]:
    channels = theirs["encoder.conv_in.weight"].shape[0]
    levels = range(count(theirs, r"encoder\.down\.(\d+)\."))
    codes, latent_channels = theirs["quantize.embedding.weight"].shape
    widths = [theirs[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in levels]
    return {
        "_target_": f"{NETWORKS}.movq.MoVQ",
        "channels": channels,
        "multipliers": [width // channels for width in widths],
        "blocks": count(theirs, r"encoder\.down\.0\.block\.(\d+)\."),
        "attention_levels": [i for i in levels if f"encoder.down.{i}.attn.0.q.weight" in theirs],
        "latent_channels": latent_channels,
        "codes": codes,
        "beta": 0.25,
        "quantise_latents": False,
    }


def count(theirs: State, pattern: str) -> int:
    """How many different numbers the names have in the pattern's group."""
    return len({match[1] for key in theirs if (match := re.match(pattern, key))})


MODULES = ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv")  # each with an average of its own
AVERAGES = tuple(f"ema_{module}." for module in MODULES)
CRITICS = "loss."  # the discriminator and LPIPS
COUNTS = ("decay", "num_updates")  # the two numbers that each average also has


def raw(checkpoint: State) -> Picked:
    """The weights after the last step, without critics and averages."""
    prefixes = {key: next((p for p in (CRITICS, *AVERAGES) if key.startswith(p)), None) for key in checkpoint}
    state = {key: checkpoint[key] for key, prefix in prefixes.items() if prefix is None}
    return Picked(state, dict(Counter(prefix for prefix in prefixes.values() if prefix is not None)))


def ema(checkpoint: State) -> Picked:
    """The averaged weights, by the names of the weights.

    ValueError where there is no average, or not one of each weight.
    """
    if not any(key.startswith(AVERAGES) for key in checkpoint):
        raise UserError("weights_of=ema, but these hold no ema_encoder, ema_decoder, ...: take weights_of=raw")
    last, dropped = raw(checkpoint)
    averages = {key: average_of(key) for key in last}
    if missing := [name for name in averages.values() if name not in checkpoint]:
        raise UserError(f"{len(missing)} averaged weights are missing, {missing[0]!r} among them; take weights_of=raw")
    spare = set(dropped) & set(AVERAGES)
    counts = {f"{name}{count}" for name in spare for count in COUNTS}
    if left := [k for k in checkpoint if k.startswith(AVERAGES) and k not in counts and k not in averages.values()]:
        raise UserError(f"{len(left)} averaged weights are of no weight, {left[0]!r} among them")
    others = {name: count for name, count in dropped.items() if name not in spare} | {"not averaged": len(last)}
    return Picked({key: checkpoint[name] for key, name in averages.items()}, others)


def average_of(key: str) -> str:
    """`encoder.conv_in.weight` is averaged in `ema_encoder.conv_inweight`."""
    module, _, name = key.partition(".")
    return f"ema_{module}.{name.replace('.', '')}"


FILES = {
    "prior": "prior_fp16.ckpt",
    "decoder": "decoder_fp16.ckpt",
    "movq": "movq_final.ckpt",
    "text": "text_encoder/config.json",
    "clip": "clip/config.json",
}
STATISTICS = "ViT-L-14_stats.th"
IMAGE_SIZE = 768  # pixels a side, on which the decoder was tuned
DIFFUSION = "open_kandinsky.diffusion"
COSINE = {"_target_": f"{DIFFUSION}.schedule.cosine", "T": 1000, "s": 0.008, "beta_max": 0.999}
LINEAR = {"_target_": f"{DIFFUSION}.schedule.linear", "T": 1000, "beta_min": 0.00085, "beta_max": 0.012}
X0, EPS = ({"_target_": f"{DIFFUSION}.parameterisation.{name}"} for name in ("X0", "Eps"))
LEARNED_RANGE = {"_target_": f"{DIFFUSION}.parameterisation.LearnedRange", "mean": EPS}
Pick = Callable[[State], Picked]  # takes the network's tensors out of a checkpoint


def find(part: str, folder: Path, pick: Pick = raw) -> Part | None:
    """The part in `folder`, which may also be a file; None where there is none.

    ValueError where it is damaged or of another network. `pick` is used for MoVQ only.
    """
    path = folder if folder.is_file() else folder / FILES[part]
    if not path.is_file() or path.name == store.WEIGHTS:
        return None
    if part in ("clip", "text"):
        return diffusers.find(part, path.parent)
    return movq(path, pick) if part == "movq" else {"prior": prior, "decoder": decoder}[part](path)


def prior(path: Path) -> Part:
    statistics = path.parent / STATISTICS
    network = structure(path, "prior", prior_config)
    dims = {
        "clip": network["image_dim"],
        "clip_text_width": network["text_width"],
        "text_length": network["text_length"],
    }
    rules = keys.prior(layers=network["layers"], head_channels=HEAD_CHANNELS)
    stage = {"network": network, "alpha_bar": COSINE, "parameterisation": X0}

    def read(like: State) -> Picked:
        return Picked(KeyMap(rules, like).to_ours({**store.read_any(path), **read_statistics(statistics)}), {})

    return Part(path.parent, (path, statistics), {"dims": dims, "stage": stage, "sampling": {}}, read)


def decoder(path: Path) -> Part:
    network = structure(path, "unet", unet_config)
    condition = network["condition"]
    dims = {
        "clip": condition["image_dim"],
        "latent_channels": network["latent_channels"],
        "context": network["context"],
        "decoder_text_width": condition["text_width"],
        "decoder_text": condition["text_dim"],
        "image_size": IMAGE_SIZE,
    }
    levels = {"levels": len(network["multipliers"]), "attention_levels": network["attention_levels"]}
    rules = keys.unet(**levels, blocks=network["blocks"], head_channels=HEAD_CHANNELS)
    stage = {"network": network, "alpha_bar": LINEAR, "parameterisation": LEARNED_RANGE}

    def read(like: State) -> Picked:
        return Picked(KeyMap(rules, like).to_ours(store.read_any(path)), {})

    return Part(path.parent, (path,), {"dims": dims, "stage": stage, "sampling": {}}, read)


def movq(path: Path, pick: Pick) -> Part:
    network = structure(path, "movq", movq_config)
    dims = {"latent_channels": network["latent_channels"], "quantise_latents": network["quantise_latents"]}
    levels = {"levels": len(network["multipliers"]), "attention_levels": network["attention_levels"]}
    rules = keys.movq(**levels, blocks=network["blocks"])

    def read(like: State) -> Picked:
        state, dropped = pick(store.read_any(path))
        return Picked(KeyMap(rules, like).to_ours(state), dropped)

    return Part(path.parent, (path,), {"dims": dims, "stage": {"network": network}, "sampling": {}}, read, True)


def structure(path: Path, name: str, config: Callable[[State], dict[str, Any]]) -> dict[str, Any]:
    """`config` of a file's weights. ValueError where a tensor that it needs is missing, or has another shape."""
    state = store.read_any(path)
    try:
        return config(state)
    except (KeyError, ValueError, ZeroDivisionError, IndexError) as error:
        names = ", ".join(sorted(state)[:3])
        raise UserError(f"{path}: not the {name} of Kandinsky 2.1: {error}; it begins with {names}") from error


def read_statistics(path: Path) -> dict[str, torch.Tensor]:
    """Mean and standard deviation of CLIP's embeddings over the training set, by the names that `keys` gives them."""
    pair = store.unpickled(path)
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(x, torch.Tensor) for x in pair):
        raise UserError(f"{path}: expected a pair of tensors, mean and std; found {type(pair).__name__}")
    return {name: x.float() for name, x in zip(keys.STATISTICS, pair, strict=True)}
