"""MoVQ of standardised latents: what an export needs whose U-Net models (z - mean) / std.

diffusers hands the U-Net's latents to MoVQ as they are. MoVQ reads and writes them through 1x1 convolutions alone, so
that the statistics go into these, without loss but for rounding.

Folders of diffusers' Kandinsky 2.1 and 2.2, as their pipelines lie on disk, read without diffusers.

A system is `prior/` and `decoder/`; one such pipeline's folder, or a network's own, does for the parts that it holds.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.weights import store
from open_kandinsky.weights.diffusers import clip, config, keys, scheduler
from open_kandinsky.weights.keymap import KeyMap, Rules, State
from open_kandinsky.weights.part import Part, Picked


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


# Where a part is looked for below a folder: of a system, of a pipeline, its own.
HOMES = {
    "prior": ("prior/prior", "prior", "."),
    "decoder": ("decoder/unet", "unet", "."),
    "movq": ("decoder/movq", "movq", "."),
    "text": ("decoder/text_encoder", "text_encoder", "."),
    "clip": ("prior", ".", "clip"),
}
CLASSES = {"prior": "PriorTransformer", "decoder": "UNet2DConditionModel", "movq": "VQModel"}
NAMES = ("diffusion_pytorch_model", "model", "diffusion_pytorch_model.fp16", "model.fp16")
FILES = (*(f"{name}.safetensors" for name in NAMES), "diffusion_pytorch_model.bin", "pytorch_model.bin")


def find(part: str, folder: Path) -> Part | None:
    """The part below `folder` in diffusers' form; None where there is none. ValueError where it is damaged."""
    places = [folder / home for home in HOMES[part]]
    return next((found for found in (PARTS[part](place) for place in places) if found is not None), None)


def prior(place: Path) -> Part | None:
    if (cfg := of_class("prior", place)) is None:
        return None
    network = config.prior(cfg, str(place))
    dims = {"clip": network["image_dim"], "clip_text_width": network["text_width"]}
    dims |= {"text_length": network["text_length"]}
    around = scheduled(place, with_variance=False)
    return part(place, network, dims, keys.prior(layers=network["layers"]), around)


def decoder(place: Path) -> Part | None:
    if (cfg := of_class("decoder", place)) is None:
        return None
    cfg = cfg | read_config(place.parent / "condition")  # see `export`
    network = config.unet(cfg, str(place))
    condition, latent = network["condition"], network["latent_channels"]
    dims = {"clip": condition["image_dim"], "latent_channels": latent, "context": network["context"]}
    dims |= {"decoder_text_width": condition.get("text_width"), "decoder_text": condition.get("text_dim")}
    doublings = len((read_config(place.parent / "movq") or {"block_out_channels": range(4)})["block_out_channels"]) - 1
    dims["image_size"] = (cfg.get("sample_size") or 64) * 2**doublings
    rules = keys.unet(levels=len(network["multipliers"]), blocks=network["blocks"])
    around = scheduled(place, with_variance=network["out_channels"] == 2 * latent)
    return part(place, network, dims, rules, around, extra=weights(place.parent / "condition"))


def movq(place: Path) -> Part | None:
    if (cfg := of_class("movq", place)) is None:
        return None
    network = config.movq(cfg, str(place))
    dims = {"latent_channels": network["latent_channels"], "quantise_latents": network["quantise_latents"]}
    structure = {"blocks": network["blocks"], "attention_levels": network["attention_levels"]}
    return part(place, network, dims, keys.movq(levels=len(network["multipliers"]), **structure))


def towers(place: Path) -> Part | None:
    """Two folders of a pipeline, or one of CLIPModel, whose config has both towers'."""
    whole = read_config(place)
    if "text_config" in whole and "vision_config" in whole:
        shared = {"projection_dim": whole.get("projection_dim", 512)}
        text, vision = ({**whole[f"{name}_config"], **shared} for name in ("text", "vision"))
        files = weights_of(place)
    elif text := read_config(place / "text_encoder"):
        vision = read_config(place / "image_encoder")
        if "hidden_size" not in text or not vision:
            return None
        files = weights_of(place / "text_encoder") + weights_of(place / "image_encoder")
    else:
        return None
    network = clip.clip(text, vision, str(place))
    dims = {"clip": network["dim"], "clip_text_width": network["text"]["width"]}
    dims |= {"text_length": network["text"]["context_length"], "clip_size": network["vision"]["image_size"]}
    logit_scale = vision.get("logit_scale", clip.LARGEST)
    rules = clip.towers(text_layers=network["text"]["layers"], vision_layers=network["vision"]["layers"])

    def read(like: State) -> Picked:
        theirs = {key: tensor for file in files for key, tensor in store.read_any(file).items()}
        return clip.clip_weights(rules, like, theirs, logit_scale)

    return Part(place, tuple(files), {"dims": dims, "stage": {"network": network}}, read)


def text(place: Path) -> Part | None:
    """Kandinsky 2.1's M-CLIP. Its tokenizer lies beside it, or in the same folder with the original files."""
    cfg = read_config(place)
    if "numDims" not in cfg:
        return None
    beside = place.parent / "tokenizer"
    network = clip.network(cfg, str(beside if beside.is_dir() else place))
    dims = {"decoder_text_width": network["transformer"]["hidden_size"], "decoder_text": network["dim"]}
    files = weights_of(place)

    def read(like: State) -> Picked:
        return clip.multilingual_weights(like, {k: v for file in files for k, v in store.read_any(file).items()})

    return Part(place, tuple(files), {"dims": dims, "stage": {"network": network}}, read)


def of_class(part: str, place: Path) -> dict[str, Any] | None:
    cfg = read_config(place)
    return cfg if cfg.get("_class_name") == CLASSES[part] else None


def read_config(place: Path) -> dict[str, Any]:
    """Empty where there is none. ValueError for one that is damaged."""
    path = place / "config.json"
    if not path.is_file():
        return {}
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; it is part of diffusers' folder of a pipeline: fetch it again")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); fetch it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: no config, which is a JSON object; found: {type(found).__name__}")
    return found


def scheduled(place: Path, *, with_variance: bool) -> dict[str, Any]:
    """What a diffusion model has besides its network; a folder that we wrote says how it is sampled, too."""
    path, defaults = place.parent / "scheduler" / "scheduler_config.json", place.parent / scheduler.DEFAULTS
    found = scheduler.diffusion(read_json(path), str(path), with_variance=with_variance)
    return found | ({"sampling": read_json(defaults)} if defaults.is_file() else {})


def weights(place: Path) -> list[Path]:
    """The files that hold a network: one, or those that an index lists. None where there are none."""
    if found := [place / name for name in FILES if (place / name).is_file()]:
        return found[:1]
    for index in sorted(place.glob("*.index.json")):
        return [place / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    return []


def weights_of(place: Path) -> list[Path]:
    found = weights(place)
    if not found:
        there = sorted(path.name for path in place.iterdir())[:6] if place.is_dir() else "no such folder"
        raise UserError(f"{place}: holds none of {', '.join(FILES)}; found: {there}. Fetch its weights")
    return found


def part(
    place: Path,
    network: Mapping[str, Any],
    dims: Mapping[str, Any],
    rules: Rules,
    around: Mapping[str, Any] | None = None,
    extra: list[Path] | None = None,
) -> Part:
    """`around` is what a diffusion model has besides its network; `extra` are files of more of its weights."""
    files = weights_of(place) + (extra or [])
    stage = {"network": network, **(around or {}).get("stage", {})}
    cfg = {"dims": dims, "stage": stage, "sampling": (around or {}).get("sampling", {})}

    def read(like: State) -> Picked:
        theirs = {key: tensor for file in files for key, tensor in store.read_any(file).items()}
        return Picked(KeyMap(rules, like).taken_over(theirs), {})

    return Part(place, tuple(files), cfg, read)


PARTS = {"prior": prior, "decoder": decoder, "movq": movq, "clip": towers, "text": text}
