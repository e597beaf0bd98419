"""Writes a system as two folders that diffusers' own pipelines open, prior/ and decoder/.

The prior is always a pipeline of theirs. The decoder is one if theirs can run it; if not, README.md says why, and how
to run it by their classes. The decoder's latents are standardised, diffusers' are not, so that the export's MoVQ
reads and writes standardised latents.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.weights import store
from open_kandinsky.weights.diffusers import clip, config, keys, scheduler
from open_kandinsky.weights.keymap import KeyMap, State

START, END = "<|startoftext|>", "<|endoftext|>"
NETWORK, TRANSFORMER = "diffusion_pytorch_model.safetensors", "model.safetensors"
HID_PROJ = "encoder_hid_proj."
PYTORCH = {"format": "pt"}  # metadata that transformers demands
KINDS = {"TextImageCondition": "text_image_proj", "ImageCondition": "image_proj"}
OLDEST = "0.30.0"  # of diffusers


class Weights(NamedTuple):
    """A part to write: its config as in a run's folder, and its state dict."""

    config: Mapping[str, Any]
    state: Mapping[str, Tensor]

    @property
    def network(self) -> Mapping[str, Any]:
        return self.config["stage"]["network"]


Read = Callable[[str], Weights]  # reads a part by its name


def write(out: Path, read: Read, tokenizer: Path | None) -> None:
    """Write all folders. `tokenizer` is the folder of the text encoder's tokenizer, if the system has one.

    ValueError where diffusers has no class for a part.
    """
    decoder, movq = read("decoder"), read("movq")
    side = decoder.config["dims"]["image_size"] // 2 ** (len(movq.network["multipliers"]) - 1)
    version = "V22" if kind(decoder.network["condition"]) == "image_proj" else ""
    write_prior(out / "prior", read("prior"), version)
    write_clip(out / "prior", read("clip"))
    write_movq(out / "decoder", movq, decoder)
    write_decoder(out / "decoder", decoder, side)
    if tokenizer is not None:
        write_text(out / "decoder", read("text"), tokenizer)
    reasons = list(not_stock(decoder.network, tokenizer is not None))
    if not reasons:
        write_json(out / "decoder" / "model_index.json", decoder_index(decoder, version))
    files.write(out / "README.md", readme(reasons, version, decoder.config, side))


def write_prior(out: Path, prior: Weights, version: str) -> None:
    """The prior's pipeline without its CLIP."""
    write_json(out / "prior" / "config.json", config.as_prior(prior.network))
    rules = keys.prior(layers=prior.network["layers"])
    store.write(out / "prior" / NETWORK, keys.to_diffusers(rules, prior.state), PYTORCH)
    stage = scheduler.as_prior_scheduler(prior.config["stage"], prior.config["sampling"])
    write_json(out / "scheduler" / "scheduler_config.json", stage)
    write_json(out / scheduler.DEFAULTS, dict(prior.config["sampling"]))
    towers = {"image_encoder": "CLIPVisionModelWithProjection", "text_encoder": "CLIPTextModelWithProjection"}
    index = {name: ["transformers", tower] for name, tower in towers.items()}
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"], "image_processor": ["transformers", "CLIPImageProcessor"]}
    index |= {"prior": ["diffusers", "PriorTransformer"], "scheduler": ["diffusers", "UnCLIPScheduler"]}
    write_json(out / "model_index.json", pipeline(f"Kandinsky{version}PriorPipeline") | index)


def write_clip(out: Path, part: Weights) -> None:
    text, vision = clip.as_clip(part.network)
    vision["logit_scale"] = float(part.state[clip.LOGIT_SCALE])  # read by us alone: theirs keep none
    rules = clip.towers(text_layers=text["num_hidden_layers"], vision_layers=vision["num_hidden_layers"])
    ours = {key: tensor for key, tensor in part.state.items() if key != clip.LOGIT_SCALE}
    theirs = KeyMap(rules, ours).to_theirs(ours)
    for name, cfg, first in (("text_encoder", text, "text"), ("image_encoder", vision, "vis")):
        write_json(out / name / "config.json", cfg)
        tower = {key: tensor for key, tensor in theirs.items() if key.startswith(first)}
        store.write(out / name / TRANSFORMER, tower, PYTORCH)
    write_tokenizer(out / "tokenizer", part.network["text"]["context_length"])
    write_image_processor(out / "image_processor", part.network["vision"]["image_size"])


def write_movq(out: Path, movq: Weights, decoder: Weights) -> None:
    """MoVQ, with the decoder's statistics of latents. ValueError for a MoVQ whose latents are quantised."""
    network = movq.network
    if network["quantise_latents"]:
        raise UserError("quantise_latents is true; diffusers' Kandinsky decodes latents as they are. Use layout=native")
    structure = {"blocks": network["blocks"], "attention_levels": network["attention_levels"]}
    rules = keys.movq(levels=len(network["multipliers"]), **structure)
    state = with_standardised_latents(movq.state, decoder.state["standardise.mean"], decoder.state["standardise.std"])
    write_json(out / "movq" / "config.json", config.as_movq(network, decoder.config["dims"]["image_size"]))
    store.write(out / "movq" / NETWORK, keys.to_diffusers(rules, state), PYTORCH)


def write_decoder(out: Path, decoder: Weights, side: int) -> None:
    """The U-Net and its scheduler. A projection of the condition that their class lacks goes to condition/."""
    network = decoder.network
    cfg = config.as_unet(network, side)
    rules = keys.unet(levels=len(network["multipliers"]), blocks=network["blocks"])
    state = keys.to_diffusers(rules, without_statistics(decoder.state))
    if not has_stock_projection(network):
        config.expect_network(network["condition"], "condition.TextImageCondition", "the one condition of any size")
        moved = {key: cfg.pop(key) for key in ("encoder_hid_dim", "encoder_hid_dim_type")}
        write_json(out / "condition" / "config.json", moved | {"image_tokens": network["condition"]["image_tokens"]})
        projection = {key: state.pop(key) for key in list(state) if key.startswith(HID_PROJ)}
        store.write(out / "condition" / NETWORK, projection, PYTORCH)
    write_json(out / "unet" / "config.json", cfg)
    store.write(out / "unet" / NETWORK, state, PYTORCH)
    stage = scheduler.as_decoder_scheduler(decoder.config["stage"], decoder.config["sampling"])
    write_json(out / "scheduler" / "scheduler_config.json", stage)
    write_json(out / scheduler.DEFAULTS, dict(decoder.config["sampling"]))


def write_text(out: Path, text: Weights, tokenizer: Path) -> None:
    write_json(out / "text_encoder" / "config.json", clip.as_config(text.network))
    theirs = KeyMap(clip.rules(text.state), text.state).to_theirs(text.state)
    store.write(out / "text_encoder" / TRANSFORMER, theirs, PYTORCH)
    for file in tokenizer_files(tokenizer):
        files.write(out / "tokenizer" / file.name, file.read_bytes())


def tokenizer_files(folder: Path) -> Iterator[Path]:
    """The files of a tokenizer; in the original layout its folder also holds weights."""
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


def write_tokenizer(folder: Path, length: int) -> None:
    """CLIP's tokenizer. It pads by the end token, as OpenAI's; ours by 0: only the states after the end differ."""
    ours = SimpleTokenizer(context_length=length)
    names = {"<start_of_text>": START, "<end_of_text>": END}
    vocabulary = {names.get(word, word): number for word, number in ours.encoder.items()}
    merges = sorted(ours.bpe_ranks, key=lambda pair: ours.bpe_ranks[pair])
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    cfg = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, **special}
    files.write(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    files.write(folder / "merges.txt", "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    write_json(folder / "tokenizer_config.json", cfg)
    write_json(folder / "special_tokens_map.json", special)


def write_image_processor(folder: Path, side: int) -> None:
    """How transformers prepares CLIP's pictures."""
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


# ---- MoVQ of standardised latents


def with_standardised_latents(movq: State, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """Weights of a MoVQ whose latent is (z - mean) / std where the given one's is z.

    MoVQ reads and writes latents through 1x1 convolutions only, which take up the statistics; exact but for rounding.
    """
    if not bool(mean.any()) and bool((std == 1).all()):
        return dict(movq)
    mean, std = mean.double(), std.double()
    spatial = [key.removesuffix(".weight") for key in movq if key.endswith((".scale.weight", ".shift.weight"))]
    changed = {}
    for module in ("post_quant", *spatial):  # the convolutions of z
        weight, bias = (movq[f"{module}.{leaf}"].double() for leaf in ("weight", "bias"))
        changed[f"{module}.bias"] = bias + weight[:, :, 0, 0] @ mean
        changed[f"{module}.weight"] = weight * std[:, None, None]
    changed["quant.weight"] = movq["quant.weight"].double() / std[:, None, None, None]
    changed["quant.bias"] = (movq["quant.bias"].double() - mean) / std
    changed["codebook.embedding.weight"] = (movq["codebook.embedding.weight"].double() - mean) / std
    return {**movq, **{key: x.to(movq[key].dtype) for key, x in changed.items()}}


def without_statistics(decoder: State) -> dict[str, Tensor]:
    """The U-Net's weights with mean 0 and std 1, for a MoVQ of standardised latents."""
    zero, one = torch.zeros_like(decoder["standardise.mean"]), torch.ones_like(decoder["standardise.std"])
    return {**decoder, "standardise.mean": zero, "standardise.std": one}


# ---- the README

HEAD = """# A Kandinsky-like system in diffusers' layout

Written by `open-kandinsky convert`, and read by it again. `prior/` is opened by

    diffusers.Kandinsky{version}PriorPipeline.from_pretrained("prior")
"""

STOCK = """
and `decoder/` by

    diffusers.DiffusionPipeline.from_pretrained("decoder")
"""

BY_HAND = """
No pipeline of diffusers' runs this decoder, for

{why}

Its U-Net, MoVQ and scheduler are diffusers' own all the same, and this draws a picture:

```python
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, Kandinsky{version}PriorPipeline, UNet2DConditionModel, VQModel
from safetensors.torch import load_file

prompt, steps, scale, side = "a red circle", {steps}, {scale}, {side}  # side: of a latent
prior = Kandinsky{version}PriorPipeline.from_pretrained("prior")
unet = UNet2DConditionModel.from_pretrained("decoder", subfolder="unet")
movq = VQModel.from_pretrained("decoder", subfolder="movq")
scheduler = DDIMScheduler.from_pretrained("decoder", subfolder="scheduler")

padded = prior.tokenizer([prompt, ""], padding="max_length", truncation=True, return_tensors="pt")
with torch.no_grad():
    text = prior.text_encoder(padded.input_ids * padded.attention_mask)  # the decoder was trained with 0 as padding
    image_embeds = torch.cat(prior(prompt).to_tuple())  # of the prompt, and of nothing
{tokens}
    added = {{"image_embeds": image_embeds, "text_embeds": text.text_embeds}}

    scheduler.set_timesteps(steps)
    z = torch.randn(1, {channels}, side, side)
    for t in scheduler.timesteps:
        eps = unet(torch.cat([z, z]), t, tokens, added_cond_kwargs=added).sample[:, :{channels}]
        conditional, unconditional = eps.chunk(2)
        eps = unconditional + scale * (conditional - unconditional)
        z = scheduler.step(eps, t, z).prev_sample
    pixels = movq.decode(z, force_not_quantize=True).sample  # in [-1, 1]
```
"""

STOCK_TOKENS = "    tokens = text.last_hidden_state  # the U-Net itself puts the image's in front of them"
PROJECTED_TOKENS = """\
    project = load_file("decoder/condition/diffusion_pytorch_model.safetensors")
    of_image, of_text = (
        F.linear(x, project[f"encoder_hid_proj.{{name}}.weight"], project[f"encoder_hid_proj.{{name}}.bias"])
        for x, name in ((image_embeds, "image_embeds"), (text.last_hidden_state, "text_proj"))
    )
    tokens = torch.cat([of_image.unflatten(1, ({count}, -1)), of_text], dim=1)"""


def has_stock_projection(network: Mapping[str, Any]) -> bool:
    """Whether UNet2DConditionModel makes as many tokens of the image's embedding."""
    condition = network["condition"]
    return condition["image_tokens"] == config.IMAGE_TOKENS[kind(condition)]


def not_stock(network: Mapping[str, Any], has_text_encoder: bool) -> Iterator[str]:
    """The reasons why no pipeline of diffusers' runs this decoder; none if one does."""
    condition = network["condition"]
    if not has_stock_projection(network):
        theirs = config.IMAGE_TOKENS[kind(condition)]
        yield f"it makes {condition['image_tokens']} tokens of an image's embedding, UNet2DConditionModel {theirs}"
    if kind(condition) == "text_image_proj" and not has_text_encoder:
        yield "its captions are read by CLIP's text tower, in KandinskyPipeline by M-CLIP"
    if network["out_channels"] == network["latent_channels"]:
        yield "it predicts no variance, which the pipelines split off"


def kind(condition: Mapping[str, Any]) -> str:
    """diffusers' name for a condition."""
    return KINDS[condition["_target_"].rpartition(".")[2]]


def readme(reasons: Sequence[str], version: str, decoder: Mapping[str, Any], side: int) -> str:
    """`reasons` are those of `not_stock`; `decoder` is its config, `side` that of a latent."""
    network, sampling = decoder["stage"]["network"], decoder["sampling"]
    head = HEAD.format(version=version)
    if not reasons:
        return head + STOCK
    projected = PROJECTED_TOKENS.format(count=network["condition"]["image_tokens"])
    return head + BY_HAND.format(
        why="\n".join(f"- {reason}" for reason in reasons),
        version=version,
        tokens=STOCK_TOKENS if has_stock_projection(network) else projected,
        channels=network["latent_channels"],
        steps=sampling["steps"],
        scale=sampling["scale"],
        side=side,
    )
