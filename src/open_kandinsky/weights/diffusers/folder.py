"""Finds parts in folders of diffusers' Kandinsky 2.1 and 2.2, as its pipelines lie on disk; diffusers is not needed.

A system is `prior/` and `decoder/`. The folder of one such pipeline, or of one network, does for the parts in it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.weights import store
from open_kandinsky.weights.diffusers import clip, config, keys, scheduler
from open_kandinsky.weights.keymap import KeyMap, Rules, State
from open_kandinsky.weights.part import Part, Picked

# Part -> where it may lie below a folder: of a system, of a pipeline, of the part itself.
PLACES = {
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
    for place in (folder / name for name in PLACES[part]):
        cfg = read_config(place)
        if part in CLASSES and cfg.get("_class_name") != CLASSES[part]:
            continue
        if (result := PARTS[part](place, cfg)) is not None:
            return result
    return None


def prior(place: Path, cfg: dict[str, Any]) -> Part:
    network = config.prior(cfg, str(place))
    dims = {
        "clip": network["image_dim"],
        "clip_text_width": network["text_width"],
        "text_length": network["text_length"],
    }
    diffusion = read_scheduler(place, with_variance=False)
    return part(place, network, dims, keys.prior(layers=network["layers"]), diffusion)


def decoder(place: Path, cfg: dict[str, Any]) -> Part:
    network = config.unet(cfg | read_config(place.parent / "condition"), str(place))  # condition/: see `export`
    condition, latent = network["condition"], network["latent_channels"]
    movq_levels = len((read_config(place.parent / "movq") or {"block_out_channels": range(4)})["block_out_channels"])
    dims = {
        "clip": condition["image_dim"],
        "latent_channels": latent,
        "context": network["context"],
        "decoder_text_width": condition.get("text_width"),
        "decoder_text": condition.get("text_dim"),
        "image_size": (cfg.get("sample_size") or 64) * 2 ** (movq_levels - 1),
    }
    rules = keys.unet(levels=len(network["multipliers"]), blocks=network["blocks"])
    diffusion = read_scheduler(place, with_variance=network["out_channels"] == 2 * latent)
    return part(place, network, dims, rules, diffusion, extra=weight_files(place.parent / "condition"))


def movq(place: Path, cfg: dict[str, Any]) -> Part:
    network = config.movq(cfg, str(place))
    dims = {"latent_channels": network["latent_channels"], "quantise_latents": network["quantise_latents"]}
    structure = {"blocks": network["blocks"], "attention_levels": network["attention_levels"]}
    return part(place, network, dims, keys.movq(levels=len(network["multipliers"]), **structure))


def towers(place: Path, cfg: dict[str, Any]) -> Part | None:
    """CLIP, from two folders of a pipeline, or from CLIPModel's, whose config has both towers'."""
    if "text_config" in cfg and "vision_config" in cfg:
        shared = {"projection_dim": cfg.get("projection_dim", 512)}
        text, vision = ({**cfg[f"{name}_config"], **shared} for name in ("text", "vision"))
        files = some_weight_files(place)
    else:
        text, vision = read_config(place / "text_encoder"), read_config(place / "image_encoder")
        if "hidden_size" not in text or not vision:
            return None
        files = some_weight_files(place / "text_encoder") + some_weight_files(place / "image_encoder")
    network = clip.clip(text, vision, str(place))
    dims = {
        "clip": network["dim"],
        "clip_text_width": network["text"]["width"],
        "text_length": network["text"]["context_length"],
        "clip_size": network["vision"]["image_size"],
    }
    logit_scale = vision.get("logit_scale", clip.LARGEST)
    rules = clip.towers(text_layers=network["text"]["layers"], vision_layers=network["vision"]["layers"])

    def read(like: State) -> Picked:
        return clip.clip_weights(rules, like, read_all(files), logit_scale)

    return Part(place, tuple(files), {"dims": dims, "stage": {"network": network}}, read)


def text(place: Path, cfg: dict[str, Any]) -> Part | None:
    """Kandinsky 2.1's M-CLIP. Its tokenizer lies in tokenizer/ or, with the original files, in the same folder."""
    if "numDims" not in cfg:
        return None
    tokenizer = place.parent / "tokenizer"
    network = clip.network(cfg, str(tokenizer if tokenizer.is_dir() else place))
    dims = {"decoder_text_width": network["transformer"]["hidden_size"], "decoder_text": network["dim"]}
    files = some_weight_files(place)

    def read(like: State) -> Picked:
        return clip.multilingual_weights(like, read_all(files))

    return Part(place, tuple(files), {"dims": dims, "stage": {"network": network}}, read)


def read_config(place: Path) -> dict[str, Any]:
    """A folder's config.json; empty where there is none. ValueError where it is damaged."""
    path = place / "config.json"
    return read_json(path) if path.is_file() else {}


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; it is part of diffusers' folder of a pipeline: fetch it again")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: no config, which is a JSON object; found: {type(content).__name__}")
    return content


def read_scheduler(place: Path, *, with_variance: bool) -> dict[str, Any]:
    """`stage` and `sampling` of a diffusion model. Folders that we wrote have a file of sampling defaults, too."""
    path, defaults = place.parent / "scheduler" / "scheduler_config.json", place.parent / scheduler.DEFAULTS
    diffusion = scheduler.diffusion(read_json(path), str(path), with_variance=with_variance)
    return diffusion | ({"sampling": read_json(defaults)} if defaults.is_file() else {})


def weight_files(place: Path) -> list[Path]:
    """The files of a network's weights: one, or those that an index lists; empty where there are none."""
    if files := [place / name for name in FILES if (place / name).is_file()]:
        return files[:1]
    for index in sorted(place.glob("*.index.json")):
        return [place / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    return []


def some_weight_files(place: Path) -> list[Path]:
    """As `weight_files`. ValueError where there are none."""
    files = weight_files(place)
    if not files:
        there = sorted(path.name for path in place.iterdir())[:6] if place.is_dir() else "no such folder"
        raise UserError(f"{place}: holds none of {', '.join(FILES)}; found: {there}. Fetch its weights")
    return files


def read_all(files: list[Path]) -> dict[str, Tensor]:
    return {key: tensor for file in files for key, tensor in store.read_any(file).items()}


def part(
    place: Path,
    network: Mapping[str, Any],
    dims: Mapping[str, Any],
    rules: Rules,
    diffusion: Mapping[str, Any] | None = None,
    extra: list[Path] | None = None,
) -> Part:
    """`diffusion` is `stage` and `sampling` of a diffusion model; `extra` are more files of its weights."""
    files = some_weight_files(place) + (extra or [])
    diffusion = diffusion or {"stage": {}, "sampling": {}}
    cfg = {"dims": dims, "stage": {"network": network, **diffusion["stage"]}, "sampling": diffusion["sampling"]}

    def read(like: State) -> Picked:
        return Picked(KeyMap(rules, like).to_ours_in_place(read_all(files)), {})

    return Part(place, tuple(files), cfg, read)


PARTS = {"prior": prior, "decoder": decoder, "movq": movq, "clip": towers, "text": text}
