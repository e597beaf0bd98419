"""The config.json of diffusers' networks as the config of ours, and back.

Ours are as in conf/network: a `_target_` and the constructor's numbers. A network that only one side can build is
refused, with the value it has and the one expected.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from open_kandinsky.core.errors import UserError

Config = Mapping[str, Any]
IMAGE_TOKENS = {"text_image_proj": 10, "image_proj": 32}  # diffusers' classes know no other number
NETWORKS = "open_kandinsky.networks"
ATTEND = {"down": "SimpleCrossAttnDownBlock2D", "up": "SimpleCrossAttnUpBlock2D"}
PLAIN = {"down": "ResnetDownsampleBlock2D", "up": "ResnetUpsampleBlock2D"}
MOVQ_ATTEND = {"down": "AttnDownEncoderBlock2D", "up": "AttnUpDecoderBlock2D"}
MOVQ_PLAIN = {"down": "DownEncoderBlock2D", "up": "UpDecoderBlock2D"}


def expect(cfg: Config, where: str, **expected: Any) -> None:
    """ValueError for a key with another value than expected; a missing key has its class's default."""
    for key, value in expected.items():
        if cfg.get(key, value) != value:
            raise UserError(
                f"{where}: {key} is {cfg[key]!r}; only {value!r} is known here, so these are not Kandinsky's"
            )


def prior(cfg: Config, where: str) -> dict[str, Any]:
    """PriorTransformer's as DiffusionPrior's."""
    expect(
        cfg,
        where,
        additional_embeddings=4,
        encoder_hid_proj_type="linear",
        added_emb_type="prd",
        time_embed_dim=None,
        norm_in_type=None,
        embedding_proj_norm_type=None,
        time_embed_act_fn="silu",
        clip_embed_dim=None,
    )
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
    expect_network(ours, "prior.DiffusionPrior", "PriorTransformer")
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
    expect(
        cfg,
        where,
        act_fn="silu",
        norm_num_groups=32,
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
        resnet_time_scale_shift="scale_shift",
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        class_embed_type=None,
        conv_in_kernel=3,
        conv_out_kernel=3,
        only_cross_attention=False,
        resnet_out_scale_factor=1.0,
        resnet_skip_time_act=False,
        cross_attention_norm=None,
    )
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
    """From the input channels, which are odd for inpainting: noisy latent, known latent and mask."""
    ins, outs = cfg["in_channels"], cfg["out_channels"]
    latent = ins if ins % 2 == 0 else (ins - 1) // 2
    if outs not in (latent, 2 * latent):
        raise UserError(f"{where}: out_channels is {outs}; expected {latent}, or {2 * latent} with a variance")
    return latent


def condition(cfg: Config, where: str, emb: int) -> dict[str, Any]:
    kinds = cfg.get("encoder_hid_dim_type"), cfg.get("addition_embed_type")
    context, hidden = cfg["cross_attention_dim"], cfg.get("encoder_hid_dim")
    if kinds == ("text_image_proj", "text_image"):
        target, sizes = "TextImageCondition", {"image_dim": context, "text_width": hidden, "text_dim": context}
    elif kinds == ("image_proj", "image"):
        target, sizes = "ImageCondition", {"image_dim": hidden}
    else:
        known = "text_image_proj and text_image (Kandinsky 2.1), image_proj and image (2.2)"
        raise UserError(f"{where}: conditioned by {kinds[0]} and {kinds[1]}; known are {known}")
    count = cfg.get("image_tokens", IMAGE_TOKENS[cfg["encoder_hid_dim_type"]])
    sizes |= {"context": context, "emb": emb}
    return {"_target_": f"{NETWORKS}.condition.{target}", "image_tokens": count, **sizes}


def as_unet(ours: Config, sample_size: int) -> dict[str, Any]:
    """UNet's as UNet2DConditionModel's, `sample_size` being a latent's side. ValueError for what that class lacks."""
    expect_network(ours, "unet.UNet", "UNet2DConditionModel")
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": ours["head_channels"],
        "cross_attention_dim": ours["context"],
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
        **as_levels(ours, ATTEND, PLAIN),
        **as_condition(ours["condition"]),
    }


def as_condition(ours: Config) -> dict[str, Any]:
    if ours["_target_"] == f"{NETWORKS}.condition.ImageCondition":
        names = {"encoder_hid_dim_type": "image_proj", "addition_embed_type": "image"}
        return {"encoder_hid_dim": ours["image_dim"], **names}
    expect_network(ours, "condition.TextImageCondition", "UNet2DConditionModel")
    if not ours["image_dim"] == ours["text_dim"] == ours["context"]:
        widths = f"image_dim {ours['image_dim']}, text_dim {ours['text_dim']}, context {ours['context']}"
        raise UserError(f"UNet2DConditionModel has one width for what conditions it; found {widths}")
    names = {"encoder_hid_dim_type": "text_image_proj", "addition_embed_type": "text_image"}
    return {"encoder_hid_dim": ours["text_width"], **names}


def movq(cfg: Config, where: str) -> dict[str, Any]:
    """VQModel's as MoVQ's. `beta`, which theirs lacks, is Kandinsky's."""
    expect(
        cfg,
        where,
        norm_type="spatial",
        norm_num_groups=32,
        act_fn="silu",
        in_channels=3,
        out_channels=3,
        mid_block_add_attention=True,
        lookup_from_codebook=False,
        vq_embed_dim=cfg["latent_channels"],
    )
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
    """MoVQ's as VQModel's, `sample_size` being a picture's side."""
    expect_network(ours, "movq.MoVQ", "VQModel")
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": ours["latent_channels"],
        "layers_per_block": ours["blocks"],
        "norm_num_groups": 32,
        "norm_type": "spatial",
        "num_vq_embeddings": ours["codes"],
        "sample_size": sample_size,
        "vq_embed_dim": ours["latent_channels"],
        **as_levels(ours, MOVQ_ATTEND, MOVQ_PLAIN),
    }


def as_levels(ours: Config, attend: Mapping[str, str], plain: Mapping[str, str]) -> dict[str, Any]:
    """Widths and kinds of blocks of each level, on the way down and up."""
    kinds = [attend if level in ours["attention_levels"] else plain for level in range(len(ours["multipliers"]))]
    return {
        "block_out_channels": [ours["channels"] * m for m in ours["multipliers"]],
        "down_block_types": [kind["down"] for kind in kinds],
        "up_block_types": [kind["up"] for kind in reversed(kinds)],
    }


def multipliers(widths: Sequence[int], where: str) -> list[int]:
    if any(width % widths[0] for width in widths):
        raise UserError(f"{where}: block_out_channels are {list(widths)}; each is expected a multiple of the first")
    return [width // widths[0] for width in widths]


def attention_levels(cfg: Config, where: str, attend: Mapping[str, str], plain: Mapping[str, str]) -> list[int]:
    """The levels with attention, which must be the same on the way down and up."""
    down, up = cfg["down_block_types"], cfg["up_block_types"]
    for side, types in (("down", down), ("up", up)):
        if stray := set(types) - {attend[side], plain[side]}:
            raise UserError(f"{where}: {side}_block_types has {min(stray)!r}; known: {attend[side]}, {plain[side]}")
    levels = [i for i, kind in enumerate(down) if kind == attend["down"]]
    if levels != [i for i, kind in enumerate(up[::-1]) if kind == attend["up"]]:
        raise UserError(f"{where}: up_block_types attend at other levels than down_block_types, {down} and {up}")
    return levels


def expect_network(ours: Config, target: str, theirs: str) -> None:
    """ValueError for another network of ours than the one that `theirs` corresponds to."""
    if ours["_target_"] != f"{NETWORKS}.{target}":
        text = f"{ours['_target_']}: diffusers has no such network; {theirs} is our {target}"
        raise UserError(f"{text}. Use layout=native")
