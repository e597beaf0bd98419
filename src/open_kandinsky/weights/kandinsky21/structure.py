"""What a network was built with, read off the names and shapes of its weights: the original files hold nothing else."""

import re
from typing import Any

from open_kandinsky.weights.keymap import State

HEAD_CHANNELS = 64  # of each attention of 2.1's prior and U-Net: shapes do not tell
NETWORKS = "open_kandinsky.networks"


def prior(theirs: State) -> dict[str, Any]:
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


def unet(theirs: State) -> dict[str, Any]:
    """A level takes blocks + 1 places on both ways; each but the last one ends its way up with a doubling."""
    channels, in_channels = theirs["input_blocks.0.0.weight"].shape[:2]
    places = count(theirs, r"output_blocks\.(\d+)\.")
    doublings = count(theirs, r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.weight")
    levels = doublings + 1
    blocks = places // levels - 1
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


def movq(theirs: State) -> dict[str, Any]:
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
    """How many numbers the pattern's group has among the names."""
    return len({found[1] for key in theirs if (found := re.match(pattern, key))})
