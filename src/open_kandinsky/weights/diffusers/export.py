"""CLIP's tokenizer and its preparation of pictures, as files that transformers reads.

A system as folders that diffusers' own pipelines open: prior/ and decoder/.

The prior is always one of theirs. The decoder's folder is a pipeline where theirs can run it; README.md, which is
written beside, says where not, and what to do instead.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.weights import store
from open_kandinsky.weights.diffusers import clip, config, folder, keys, scheduler
from open_kandinsky.weights.keymap import KeyMap

START, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path, length: int) -> None:
    """Padding is the end's token, as in OpenAI's: ours is 0, which only a reader of states behind the end can tell."""
    own = SimpleTokenizer(context_length=length)
    renamed = {"<start_of_text>": START, "<end_of_text>": END}
    vocabulary = {renamed.get(word, word): number for word, number in own.encoder.items()}
    merges = sorted(own.bpe_ranks, key=lambda pair: own.bpe_ranks[pair])
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    facts = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, **special}
    files.write(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    files.write(folder / "merges.txt", "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    write_json(folder / "tokenizer_config.json", facts)
    write_json(folder / "special_tokens_map.json", special)


def write_image_processor(folder: Path, side: int) -> None:
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": side},
            "resample": 3,  # bicubic
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(OPENAI_DATASET_MEAN),
            "image_std": list(OPENAI_DATASET_STD),
            "do_convert_rgb": True,
        },
    )


def write_json(path: Path, value: Any) -> None:
    files.write(path, json.dumps(value, indent=2) + "\n")


NETWORK, TRANSFORMER = "diffusion_pytorch_model.safetensors", "model.safetensors"
HID_PROJ = "encoder_hid_proj."
OLDEST = "0.30.0"  # of diffusers


class Weights(NamedTuple):
    """A part to write: its config, as a run's, and its state dict."""

    config: Mapping[str, Any]
    state: Mapping[str, Tensor]

    @property
    def network(self) -> Mapping[str, Any]:
        return self.config["stage"]["network"]


Read = Callable[[str], Weights]  # a part by its name, read when it is its turn


def write(out: Path, read: Read, tokenizer: Path | None) -> None:
    """All folders. `tokenizer` is the text encoder's folder, if there is one.

    ValueError where diffusers has no class for a part.
    """
    decoder, movq = read("decoder"), read("movq")
    side = decoder.config["dims"]["image_size"] // 2 ** (len(movq.network["multipliers"]) - 1)
    version = "V22" if config.kind(decoder.network["condition"]) == "image_proj" else ""
    write_prior(out / "prior", read("prior"), version)
    write_clip(out / "prior", read("clip"))
    write_movq(out / "decoder", movq, decoder)
    write_decoder(out / "decoder", decoder, side)
    if tokenizer is not None:
        write_text(out / "decoder", read("text"), tokenizer)
    reasons = list(config.not_stock(decoder.network, tokenizer is not None))
    if not reasons:
        write_json(out / "decoder" / "model_index.json", decoder_index(decoder, version))
    files.write(out / "README.md", config.readme(reasons, version, decoder.config, side))


def write_prior(out: Path, prior: Weights, version: str) -> None:
    """The pipeline but for its CLIP."""
    write_json(out / "prior" / "config.json", config.as_prior(prior.network))
    rules = keys.prior(layers=prior.network["layers"])
    store.write(out / "prior" / NETWORK, keys.to_diffusers(rules, prior.state), {"format": "pt"})
    stage = scheduler.as_prior_scheduler(prior.config["stage"], prior.config["sampling"])
    write_json(out / "scheduler" / "scheduler_config.json", stage)
    write_json(out / scheduler.DEFAULTS, dict(prior.config["sampling"]))
    towers = {"image_encoder": "CLIPVisionModelWithProjection", "text_encoder": "CLIPTextModelWithProjection"}
    index = {name: ["transformers", kind] for name, kind in towers.items()}
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"], "image_processor": ["transformers", "CLIPImageProcessor"]}
    index |= {"prior": ["diffusers", "PriorTransformer"], "scheduler": ["diffusers", "UnCLIPScheduler"]}
    write_json(out / "model_index.json", pipeline(f"Kandinsky{version}PriorPipeline") | index)


def write_clip(out: Path, part: Weights) -> None:
    text, vision = clip.as_clip(part.network)
    vision["logit_scale"] = float(part.state[clip.LOGIT_SCALE])  # for our own way back: theirs keep none
    rules = clip.towers(text_layers=text["num_hidden_layers"], vision_layers=vision["num_hidden_layers"])
    ours = {key: tensor for key, tensor in part.state.items() if key != clip.LOGIT_SCALE}
    theirs = KeyMap(rules, ours).to_theirs(ours)
    for name, cfg, first in (("text_encoder", text, "text"), ("image_encoder", vision, "vis")):
        write_json(out / name / "config.json", cfg)
        tower = {key: tensor for key, tensor in theirs.items() if key.startswith(first)}
        store.write(out / name / TRANSFORMER, tower, {"format": "pt"})
    write_tokenizer(out / "tokenizer", part.network["text"]["context_length"])
    write_image_processor(out / "image_processor", part.network["vision"]["image_size"])


def write_movq(out: Path, movq: Weights, decoder: Weights) -> None:
    """The decoder's statistics go into it. ValueError for a MoVQ whose latents are quantised."""
    network = movq.network
    if network["quantise_latents"]:
        raise UserError("quantise_latents is true; diffusers' Kandinsky decodes latents as they are. Use layout=native")
    structure = {"blocks": network["blocks"], "attention_levels": network["attention_levels"]}
    rules = keys.movq(levels=len(network["multipliers"]), **structure)
    state = folder.standardised(movq.state, decoder.state["standardise.mean"], decoder.state["standardise.std"])
    write_json(out / "movq" / "config.json", config.as_movq(network, decoder.config["dims"]["image_size"]))
    store.write(out / "movq" / NETWORK, keys.to_diffusers(rules, state), {"format": "pt"})


def write_decoder(out: Path, decoder: Weights, side: int) -> None:
    """The U-Net and its scheduler. A projection of the condition that their class has not goes to condition/."""
    network = decoder.network
    cfg = config.as_unet(network, side)
    rules = keys.unet(levels=len(network["multipliers"]), blocks=network["blocks"])
    state = keys.to_diffusers(rules, folder.identity(decoder.state))
    if not config.has_their_projection(network):
        config.refuse_other(network["condition"], "condition.TextImageCondition", "the one condition of any size")
        moved = {key: cfg.pop(key) for key in ("encoder_hid_dim", "encoder_hid_dim_type")}
        write_json(out / "condition" / "config.json", moved | {"image_tokens": network["condition"]["image_tokens"]})
        own = {key: state.pop(key) for key in list(state) if key.startswith(HID_PROJ)}
        store.write(out / "condition" / NETWORK, own, {"format": "pt"})
    write_json(out / "unet" / "config.json", cfg)
    store.write(out / "unet" / NETWORK, state, {"format": "pt"})
    stage = scheduler.as_decoder_scheduler(decoder.config["stage"], decoder.config["sampling"])
    write_json(out / "scheduler" / "scheduler_config.json", stage)
    write_json(out / scheduler.DEFAULTS, dict(decoder.config["sampling"]))


def write_text(out: Path, text: Weights, tokenizer: Path) -> None:
    write_json(out / "text_encoder" / "config.json", clip.as_config(text.network))
    theirs = KeyMap(clip.rules(text.state), text.state).to_theirs(text.state)
    store.write(out / "text_encoder" / TRANSFORMER, theirs, {"format": "pt"})
    for file in tokenizer_files(tokenizer):
        files.write(out / "tokenizer" / file.name, file.read_bytes())


def tokenizer_files(folder: Path) -> Iterator[Path]:
    """Those of a tokenizer: in the original layout weights lie beside them."""
    for name in ("sentencepiece.bpe.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            yield folder / name


def decoder_index(decoder: Weights, version: str) -> dict[str, Any]:
    network = decoder.network
    inpaint = "Inpaint" if network["in_channels"] != network["latent_channels"] else ""
    index = {"unet": ["diffusers", "UNet2DConditionModel"], "movq": ["diffusers", "VQModel"]}
    stage = scheduler.as_decoder_scheduler(decoder.config["stage"], decoder.config["sampling"])
    index |= {"scheduler": ["diffusers", stage["_class_name"]]}
    if not version:
        index |= {"text_encoder": ["kandinsky", "MultilingualCLIP"]}
        index |= {"tokenizer": ["transformers", "XLMRobertaTokenizerFast"]}
    return pipeline(f"Kandinsky{version}{inpaint}Pipeline") | index


def pipeline(name: str) -> dict[str, Any]:
    return {"_class_name": name, "_diffusers_version": OLDEST}
