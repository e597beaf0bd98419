"""Our networks' weights as those of the original Kandinsky 2.1 files: prior, U-Net and MoVQ.

    rules = unet(levels=4, blocks=3, attention_levels=[1, 2, 3], head_channels=64)
    ours = KeyMap(rules, network.state_dict()).to_ours(theirs)

Functions that give rules take a network's own structural numbers. The originals keep queries, keys and values head by
head, [q0 k0 v0 q1 k1 v1 ...], ours one kind after the other.
"""

from collections.abc import Collection

from einops import rearrange
from torch import Tensor

from open_kandinsky.weights.diffusers.keys import SPATIAL_NORM, movq_level
from open_kandinsky.weights.keymap import (
    Change,
    Constant,
    Rule,
    Rules,
    chain,
    leading,
    pointwise,
    renamed,
    stacked,
    under,
)

STATISTICS = ("statistics.mean", "statistics.std")  # our names for the two tensors of ViT-L-14_stats.th, which has none


def interleaved(parts: int, head_channels: int) -> Change:
    """Ours is theirs with the rows of each head, `parts` runs of `head_channels`, dealt out to the parts."""
    dims = {"parts": parts, "c": head_channels}

    def join(tensors: list[Tensor]) -> Tensor:
        return rearrange(tensors[0], "(heads parts c) ... -> (parts heads c) ...", **dims)

    def split(x: Tensor) -> list[Tensor]:
        return [rearrange(x, "(parts heads c) ... -> (heads parts c) ...", **dims)]

    return Change(join, split)


PRIOR = [
    Rule("standardise.mean", STATISTICS[:1]),
    Rule("standardise.std", STATISTICS[1:]),
    Rule("position", ("model.positional_embedding",), leading(1)),
    Rule("readout", ("model.prd_emb",), leading(2)),
    *renamed(
        {
            "text_tokens": "model.text_enc_proj",
            "text_emb": "model.text_emb_proj",
            "x_t": "model.clip_img_proj",
            "time.mlp.0": "model.time_embed.0",
            "time.mlp.2": "model.time_embed.2",
            "norm_out": "model.final_ln",
            "out": "model.out_proj",
        }
    ),
]
PRIOR_LAYER = renamed(
    {
        "attention.out": "attn.c_proj",
        "norm_attention": "ln_1",
        "norm_mlp": "ln_2",
        "mlp.0": "mlp.c_fc",
        "mlp.2": "mlp.c_proj",
    }
)

FILM_BLOCK = renamed(
    {
        "norm_in": "in_layers.0",
        "conv_in": "in_layers.2",
        "film": "emb_layers.1",
        "norm_out": "out_layers.0",
        "conv_out": "out_layers.3",
        "skip": "skip_connection",
    }
)
UNET = [
    Constant("standardise.mean", 0),  # theirs models MoVQ's latents as they are
    Constant("standardise.std", 1),
    *renamed(
        {
            "time.mlp.0": "time_embed.0",
            "time.mlp.2": "time_embed.2",
            "conv_in": "input_blocks.0.0",
            "norm_out": "out.0",
            "conv_out": "out.2",
            "condition.image_tokens": "clip_to_seq",
            "condition.text_tokens": "to_model_dim_n",
            "condition.image_emb": "img_layer",
            "condition.text_emb.0": "proj_n",
            "condition.text_emb.1": "ln_model_n",
        }
    ),
]

CONV_BLOCK = renamed({"conv_in": "conv1", "conv_out": "conv2", "skip": "nin_shortcut"})
GROUP_NORM_BLOCK = CONV_BLOCK + renamed({"norm_in": "norm1", "norm_out": "norm2"})
SPATIAL_NORM_BLOCK = [
    *CONV_BLOCK,
    *under("norm_in", "norm1", SPATIAL_NORM),
    *under("norm_out", "norm2", SPATIAL_NORM),
]
PIXEL_ATTENTION = [
    Rule("qkv", ("q", "k", "v"), chain(stacked(3), pointwise(2))),
    Rule("out", ("proj_out",), pointwise(2)),
]
GROUP_NORM_ATTENTION = PIXEL_ATTENTION + renamed({"norm": "norm"})
SPATIAL_NORM_ATTENTION = PIXEL_ATTENTION + under("norm", "norm", SPATIAL_NORM)
MOVQ = [
    *renamed({"quant": "quant_conv", "post_quant": "post_quant_conv", "codebook.embedding": "quantize.embedding"}),
    *renamed({name: name for name in ("encoder.conv_in", "encoder.conv_out", "encoder.norm_out")}),
    *renamed({name: name for name in ("decoder.conv_in", "decoder.conv_out")}),
    *under("decoder.norm_out", "decoder.norm_out", SPATIAL_NORM),
]


def prior(*, layers: int, head_channels: int) -> Rules:
    """DiffusionPrior <-> prior_fp16.ckpt with ViT-L-14_stats.th, whose tensors are called `STATISTICS`."""
    layer = [Rule("attention.qkv", ("attn.c_qkv",), interleaved(3, head_channels)), *PRIOR_LAYER]
    return PRIOR + [r for n in range(layers) for r in under(f"layers.{n}", f"model.transformer.resblocks.{n}", layer)]


def unet(*, levels: int, blocks: int, attention_levels: Collection[int], head_channels: int) -> Rules:
    """UNet with Kandinsky 2.1's condition and any input <-> decoder_fp16.ckpt and inpainting_fp16.ckpt.

    Both number blocks through all levels, theirs from the first convolution on. Theirs also number the modules of a
    block, so that a change of resolution has the number after the attention's, where there is an attention.
    """
    attention = _context_attention(head_channels)
    rules = list(UNET)
    for i in range(levels * (blocks + 1)):
        rules += under(f"down.{i}.res", f"input_blocks.{i + 1}.0", FILM_BLOCK)
        rules += under(f"down.{i}.attention", f"input_blocks.{i + 1}.1", attention)
        place = 2 if levels - 1 - i // (blocks + 1) in attention_levels else 1
        rules += under(f"up.{i}.res", f"output_blocks.{i}.0", FILM_BLOCK)
        rules += under(f"up.{i}.attention", f"output_blocks.{i}.1", attention)
        rules += under(f"up.{i}.resample", f"output_blocks.{i}.{place}", FILM_BLOCK)
    rules += under("middle.0.res", "middle_block.0", FILM_BLOCK) + under("middle.1.res", "middle_block.2", FILM_BLOCK)
    return rules + under("middle.0.attention", "middle_block.1", attention)


def _context_attention(head_channels: int) -> list[Rule]:
    """Theirs are 1x1 convolutions over a flattened picture."""
    return [
        *renamed({"norm": "norm"}),
        Rule("qkv", ("qkv",), chain(pointwise(1), interleaved(3, head_channels))),
        Rule("context_kv", ("encoder_kv",), chain(pointwise(1), interleaved(2, head_channels))),
        Rule("out", ("proj_out",), pointwise(1)),
    ]


def movq(*, levels: int, blocks: int, attention_levels: Collection[int]) -> Rules:
    """MoVQ <-> movq_final.ckpt, and MoVQGAN's checkpoints. Their decoder's levels are counted from the last one run."""
    rules = list(MOVQ)
    encoder, decoder = (GROUP_NORM_BLOCK, GROUP_NORM_ATTENTION), (SPATIAL_NORM_BLOCK, SPATIAL_NORM_ATTENTION)
    for i in range(levels):
        attends = i in attention_levels
        down, up = f"encoder.down.{i}", f"decoder.up.{i}"
        rules += movq_level(f"encoder.levels.{i}", f"{down}.block", f"{down}.attn", attends, blocks, *encoder)
        ours = f"decoder.levels.{levels - 1 - i}"
        rules += movq_level(ours, f"{up}.block", f"{up}.attn", attends, blocks + 1, *decoder)
        rules += renamed({f"encoder.halving.{i}.1": f"{down}.downsample.conv"})
        rules += renamed({f"decoder.doubling.{levels - 1 - i}.1": f"{up}.upsample.conv"})
    return rules + _middle("encoder", *encoder) + _middle("decoder", *decoder)


def _middle(side: str, block: list[Rule], attention: list[Rule]) -> list[Rule]:
    ours, theirs = f"{side}.middle.blocks", f"{side}.mid"
    first, last = under(f"{ours}.0", f"{theirs}.block_1", block), under(f"{ours}.2", f"{theirs}.block_2", block)
    return first + last + under(f"{ours}.1", f"{theirs}.attn_1", attention)
