"""What whoever opens an exported folder has to know: which of diffusers' pipelines do, and what to do if none does.

The config.json of diffusers' networks, and ours of the same network: in both directions.

Ours are as in conf/network: a `_target_` and the constructor's numbers. What we cannot build, or they, is refused with
the value found and the one expected.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from open_kandinsky.core.errors import UserError

KIND = {"TextImageCondition": "text_image_proj", "ImageCondition": "image_proj"}

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
        told, untold = eps.chunk(2)
        z = scheduler.step(untold + scale * (told - untold), t, z).prev_sample
    pixels = movq.decode(z, force_not_quantize=True).sample  # in [-1, 1]
```
"""

THEIR_TOKENS = "    tokens = text.last_hidden_state  # the U-Net itself puts the image's in front of them"
OUR_TOKENS = """\
    project = load_file("decoder/condition/diffusion_pytorch_model.safetensors")
    of_image, of_text = (
        F.linear(x, project[f"encoder_hid_proj.{{name}}.weight"], project[f"encoder_hid_proj.{{name}}.bias"])
        for x, name in ((image_embeds, "image_embeds"), (text.last_hidden_state, "text_proj"))
    )
    tokens = torch.cat([of_image.unflatten(1, ({count}, -1)), of_text], dim=1)"""


def has_their_projection(network: Mapping[str, Any]) -> bool:
    """Whether UNet2DConditionModel makes as many tokens of the image's embedding."""
    condition = network["condition"]
    return condition["image_tokens"] == IMAGE_TOKENS[kind(condition)]


def not_stock(network: Mapping[str, Any], has_text_encoder: bool) -> Iterator[str]:
    """Why none of diffusers' pipelines runs this decoder; nothing where one does."""
    condition = network["condition"]
    if not has_their_projection(network):
        theirs = IMAGE_TOKENS[kind(condition)]
        yield f"it makes {condition['image_tokens']} tokens of an image's embedding, UNet2DConditionModel {theirs}"
    if kind(condition) == "text_image_proj" and not has_text_encoder:
        yield "its captions are read by CLIP's text tower, in KandinskyPipeline by M-CLIP"
    if network["out_channels"] == network["latent_channels"]:
        yield "it predicts no variance, which the pipelines split off"


def kind(condition: Mapping[str, Any]) -> str:
    return KIND[condition["_target_"].rpartition(".")[2]]


def readme(reasons: Sequence[str], version: str, decoder: Mapping[str, Any], side: int) -> str:
    """`decoder` is its config; `side` that of a latent."""
    network, sampling = decoder["stage"]["network"], decoder["sampling"]
    head = HEAD.format(version=version)
    if not reasons:
        return head + STOCK
    tokens = THEIR_TOKENS
    if not has_their_projection(network):
        tokens = OUR_TOKENS.format(count=network["condition"]["image_tokens"])
    numbers = {"steps": sampling["steps"], "scale": sampling["scale"], "side": side}
    why = "\n".join(f"- {reason}" for reason in reasons)
    return head + BY_HAND.format(
        why=why, version=version, tokens=tokens, channels=network["latent_channels"], **numbers
    )


Config = Mapping[str, Any]
IMAGE_TOKENS = {"text_image_proj": 10, "image_proj": 32}  # diffusers' classes know no other number
NETWORKS = "open_kandinsky.networks"
ATTEND = {"down": "SimpleCrossAttnDownBlock2D", "up": "SimpleCrossAttnUpBlock2D"}
PLAIN = {"down": "ResnetDownsampleBlock2D", "up": "ResnetUpsampleBlock2D"}
MOVQ_ATTEND = {"down": "AttnDownEncoderBlock2D", "up": "AttnUpDecoderBlock2D"}
MOVQ_PLAIN = {"down": "DownEncoderBlock2D", "up": "UpDecoderBlock2D"}


def expect(cfg: Config, where: str, **expected: Any) -> None:
    """ValueError for a value that is there and is another; a key that is not there has its class's default."""
    for key, value in expected.items():
        if cfg.get(key, value) != value:
            raise UserError(
                f"{where}: {key} is {cfg[key]!r}; only {value!r} is known here, so these are not Kandinsky's"
            )


def prior(cfg: Config, where: str) -> dict[str, Any]:
    """PriorTransformer's as DiffusionPrior's."""
    expect(
        cfg, where, additional_embeddings=4, encoder_hid_proj_type="linear", added_emb_type="prd", time_embed_dim=None
    )
    expect(cfg, where, norm_in_type=None, embedding_proj_norm_type=None, time_embed_act_fn="silu", clip_embed_dim=None)
    dim, heads = cfg.get("embedding_dim", 768), cfg.get("num_attention_heads", 32)
    return {
        "_target_": f"{NETWORKS}.prior.DiffusionPrior",
        "image_dim": dim,
        "text_dim": cfg.get("embedding_proj_dim") or dim,
        "text_width": dim,
        "text_length": cfg.get("num_embeddings", 77),
        "width": heads * cfg.get("attention_head_dim", 64),
        "layers": cfg.get("num_layers", 20),
        "heads": heads,
    }


def as_prior(ours: Config) -> dict[str, Any]:
    """ValueError for another network than DiffusionPrior, and for text states of another width than the image's."""
    refuse_other(ours, "prior.DiffusionPrior", "PriorTransformer")
    if ours["text_width"] != ours["image_dim"]:
        raise UserError(
            f"PriorTransformer has one width; found text_width {ours['text_width']}, image {ours['image_dim']}"
        )
    return {
        "_class_name": "PriorTransformer",
        "num_attention_heads": ours["heads"],
        "attention_head_dim": ours["width"] // ours["heads"],
        "num_layers": ours["layers"],
        "embedding_dim": ours["image_dim"],
        "embedding_proj_dim": None if ours["text_dim"] == ours["image_dim"] else ours["text_dim"],
        "num_embeddings": ours["text_length"],
        "additional_embeddings": 4,
        "dropout": 0.0,
    }


def unet(cfg: Config, where: str) -> dict[str, Any]:
    """UNet2DConditionModel's as UNet's."""
    expect(cfg, where, act_fn="silu", norm_num_groups=32, norm_eps=1e-5, flip_sin_to_cos=True, freq_shift=0)
    expect(cfg, where, resnet_time_scale_shift="scale_shift", mid_block_type="UNetMidBlock2DSimpleCrossAttn")
    expect(cfg, where, class_embed_type=None, conv_in_kernel=3, conv_out_kernel=3, only_cross_attention=False)
    expect(cfg, where, resnet_out_scale_factor=1.0, resnet_skip_time_act=False, cross_attention_norm=None)
    widths = cfg["block_out_channels"]
    emb = cfg.get("time_embedding_dim") or 4 * widths[0]
    return {
        "_target_": f"{NETWORKS}.unet.UNet",
        "condition": condition(cfg, where, emb),
        "in_channels": cfg["in_channels"],
        "out_channels": cfg["out_channels"],
        "latent_channels": latent_channels(cfg, where),
        "channels": widths[0],
        "multipliers": multipliers(widths, where),
        "blocks": cfg["layers_per_block"],
        "attention_levels": attention_levels(cfg, where, ATTEND, PLAIN),
        "head_channels": cfg["attention_head_dim"],
        "context": cfg["cross_attention_dim"],
        "emb": emb,
    }


def latent_channels(cfg: Config, where: str) -> int:
    """An odd number of inputs is inpainting's: noisy latent, known latent and mask."""
    ins, outs = cfg["in_channels"], cfg["out_channels"]
    latent = ins if ins % 2 == 0 else (ins - 1) // 2
    if outs not in (latent, 2 * latent):
        raise UserError(f"{where}: out_channels is {outs}; expected {latent}, or {2 * latent} with a variance")
    return latent


def condition(cfg: Config, where: str, emb: int) -> dict[str, Any]:
    kinds = cfg.get("encoder_hid_dim_type"), cfg.get("addition_embed_type")
    sizes = {"context": cfg["cross_attention_dim"], "emb": emb}
    if kinds == ("text_image_proj", "text_image"):
        dim, target = cfg["cross_attention_dim"], "TextImageCondition"
        sizes |= {"image_dim": dim, "text_width": cfg["encoder_hid_dim"], "text_dim": dim}
    elif kinds == ("image_proj", "image"):
        sizes, target = sizes | {"image_dim": cfg["encoder_hid_dim"]}, "ImageCondition"
    else:
        known = "text_image_proj and text_image (Kandinsky 2.1), image_proj and image (2.2)"
        raise UserError(f"{where}: conditioned by {kinds[0]} and {kinds[1]}; known are {known}")
    count = cfg.get("image_tokens", IMAGE_TOKENS[cfg["encoder_hid_dim_type"]])
    return {"_target_": f"{NETWORKS}.condition.{target}", "image_tokens": count, **sizes}


def as_unet(ours: Config, sample_size: int) -> dict[str, Any]:
    """Widths that UNet2DConditionModel has one of must be alike; `sample_size` is a latent's side."""
    refuse_other(ours, "unet.UNet", "UNet2DConditionModel")
    levels = range(len(ours["multipliers"]))
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": ours["head_channels"],
        "block_out_channels": [ours["channels"] * m for m in ours["multipliers"]],
        "cross_attention_dim": ours["context"],
        "down_block_types": [(ATTEND if i in ours["attention_levels"] else PLAIN)["down"] for i in levels],
        "up_block_types": [(ATTEND if i in ours["attention_levels"] else PLAIN)["up"] for i in levels[::-1]],
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": ours["in_channels"],
        "out_channels": ours["out_channels"],
        "layers_per_block": ours["blocks"],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "resnet_time_scale_shift": "scale_shift",
        "sample_size": sample_size,
        "time_embedding_dim": None if ours["emb"] == 4 * ours["channels"] else ours["emb"],
        **as_condition(ours["condition"]),
    }


def as_condition(ours: Config) -> dict[str, Any]:
    if ours["_target_"] == f"{NETWORKS}.condition.ImageCondition":
        found = {
            "encoder_hid_dim": ours["image_dim"],
            "encoder_hid_dim_type": "image_proj",
            "addition_embed_type": "image",
        }
    else:
        refuse_other(ours, "condition.TextImageCondition", "UNet2DConditionModel")
        if not ours["image_dim"] == ours["text_dim"] == ours["context"]:
            widths = f"image_dim {ours['image_dim']}, text_dim {ours['text_dim']}, context {ours['context']}"
            raise UserError(f"UNet2DConditionModel has one width for what conditions it; found {widths}")
        found = {"encoder_hid_dim": ours["text_width"], "encoder_hid_dim_type": "text_image_proj"}
        found |= {"addition_embed_type": "text_image"}
    return found


def movq(cfg: Config, where: str) -> dict[str, Any]:
    """VQModel's as MoVQ's. Theirs keeps no weight of the codebook's loss: Kandinsky's is given."""
    expect(cfg, where, norm_type="spatial", norm_num_groups=32, act_fn="silu", in_channels=3, out_channels=3)
    expect(cfg, where, mid_block_add_attention=True, lookup_from_codebook=False)
    expect(cfg, where, vq_embed_dim=cfg["latent_channels"])
    widths = cfg["block_out_channels"]
    return {
        "_target_": f"{NETWORKS}.movq.MoVQ",
        "channels": widths[0],
        "multipliers": multipliers(widths, where),
        "blocks": cfg["layers_per_block"],
        "attention_levels": attention_levels(cfg, where, MOVQ_ATTEND, MOVQ_PLAIN),
        "latent_channels": cfg["latent_channels"],
        "codes": cfg["num_vq_embeddings"],
        "beta": 0.25,
        "quantise_latents": False,
    }


def as_movq(ours: Config, sample_size: int) -> dict[str, Any]:
    """`sample_size` is a picture's side."""
    refuse_other(ours, "movq.MoVQ", "VQModel")
    levels = range(len(ours["multipliers"]))
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": [ours["channels"] * m for m in ours["multipliers"]],
        "down_block_types": [(MOVQ_ATTEND if i in ours["attention_levels"] else MOVQ_PLAIN)["down"] for i in levels],
        "up_block_types": [(MOVQ_ATTEND if i in ours["attention_levels"] else MOVQ_PLAIN)["up"] for i in levels[::-1]],
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": ours["latent_channels"],
        "layers_per_block": ours["blocks"],
        "norm_num_groups": 32,
        "norm_type": "spatial",
        "num_vq_embeddings": ours["codes"],
        "sample_size": sample_size,
        "vq_embed_dim": ours["latent_channels"],
    }


def multipliers(widths: Sequence[int], where: str) -> list[int]:
    if any(width % widths[0] for width in widths):
        raise UserError(f"{where}: block_out_channels are {list(widths)}; each is expected a multiple of the first")
    return [width // widths[0] for width in widths]


def attention_levels(cfg: Config, where: str, attend: Mapping[str, str], plain: Mapping[str, str]) -> list[int]:
    """Which levels attend, the same on the way down and up."""
    down, up = cfg["down_block_types"], cfg["up_block_types"]
    for side, found in (("down", down), ("up", up)):
        if stray := set(found) - {attend[side], plain[side]}:
            raise UserError(f"{where}: {side}_block_types has {min(stray)!r}; known: {attend[side]}, {plain[side]}")
    levels = [i for i, kind in enumerate(down) if kind == attend["down"]]
    if levels != [i for i, kind in enumerate(up[::-1]) if kind == attend["up"]]:
        raise UserError(f"{where}: up_block_types attend at other levels than down_block_types, {down} and {up}")
    return levels


def refuse_other(ours: Config, target: str, theirs: str) -> None:
    if ours["_target_"] != f"{NETWORKS}.{target}":
        raise UserError(
            f"{ours['_target_']}: diffusers has no such network; {theirs} is our {target}. Use layout=native"
        )
