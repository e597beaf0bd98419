"""Our networks' weights as diffusers': PriorTransformer, UNet2DConditionModel and VQModel of Kandinsky 2.1 and 2.2.

    rules = unet(levels=4, blocks=3)
    ours = from_diffusers(rules, network.state_dict(), theirs)        theirs = to_diffusers(rules, ours)

Functions that give rules take a network's own structural numbers; widths do not matter.
"""

from collections.abc import Collection

from torch import Tensor

from open_kandinsky.weights.keymap import Constant, KeyMap, Rule, Rules, State, leading, renamed, stacked, under


def from_diffusers(rules: Rules, like: State, theirs: State) -> dict[str, Tensor]:
    """diffusers' weights as ours, `like` being our network's state dict (of any values, on `meta` if you like)."""
    return KeyMap(rules, like).to_ours(theirs)


def to_diffusers(rules: Rules, ours: State) -> dict[str, Tensor]:
    """Our weights as diffusers'. ValueError where theirs cannot hold ours: a U-Net of standardised latents."""
    return KeyMap(rules, ours).to_theirs(ours)


QKV = Rule("qkv", ("to_q", "to_k", "to_v"), stacked(3))

PRIOR_LAYER = [
    *under("attention", "attn1", [QKV, *renamed({"out": "to_out.0"})]),
    *renamed({"norm_attention": "norm1", "norm_mlp": "norm3", "mlp.0": "ff.net.0.proj", "mlp.2": "ff.net.2"}),
]
PRIOR = [
    Rule("standardise.mean", ("clip_mean",), leading(1)),
    Rule("standardise.std", ("clip_std",), leading(1)),
    Rule("position", ("positional_embedding",), leading(1)),
    Rule("readout", ("prd_embedding",), leading(2)),
    *renamed(
        {
            "text_tokens": "encoder_hidden_states_proj",
            "text_emb": "embedding_proj",
            "x_t": "proj_in",
            "time.mlp.0": "time_embedding.linear_1",
            "time.mlp.2": "time_embedding.linear_2",
            "norm_out": "norm_out",
            "out": "proj_to_clip_embeddings",
        }
    ),
]

FILM_BLOCK = renamed(
    {
        "norm_in": "norm1",
        "conv_in": "conv1",
        "film": "time_emb_proj",
        "norm_out": "norm2",
        "conv_out": "conv2",
        "skip": "conv_shortcut",
    }
)
CONTEXT_ATTENTION = [
    QKV,
    Rule("context_kv", ("add_k_proj", "add_v_proj"), stacked(2)),
    *renamed({"norm": "group_norm", "out": "to_out.0"}),
]
UNET = [
    Constant("standardise.mean", 0),  # diffusers' U-Net models MoVQ's latents as they are
    Constant("standardise.std", 1),
    *renamed(
        {
            "time.mlp.0": "time_embedding.linear_1",
            "time.mlp.2": "time_embedding.linear_2",
            "conv_in": "conv_in",
            "norm_out": "conv_norm_out",
            "conv_out": "conv_out",
            "condition.image_tokens": "encoder_hid_proj.image_embeds",
        }
    ),
]
TEXT_IMAGE_CONDITION = renamed(  # Kandinsky 2.1
    {
        "condition.text_tokens": "encoder_hid_proj.text_proj",
        "condition.image_emb": "add_embedding.image_proj",
        "condition.text_emb.0": "add_embedding.text_proj",
        "condition.text_emb.1": "add_embedding.text_norm",
    }
)
IMAGE_CONDITION = renamed(  # Kandinsky 2.2
    {
        "condition.norm_tokens": "encoder_hid_proj.norm",
        "condition.image_emb.0": "add_embedding.image_proj",
        "condition.image_emb.1": "add_embedding.image_norm",
    }
)

SPATIAL_NORM = renamed({"norm": "norm_layer", "scale": "conv_y", "shift": "conv_b"})
GROUP_NORM_BLOCK = renamed({"norm_in": "norm1", "norm_out": "norm2"})
SPATIAL_NORM_BLOCK = [*under("norm_in", "norm1", SPATIAL_NORM), *under("norm_out", "norm2", SPATIAL_NORM)]
CONV_BLOCK = renamed({"conv_in": "conv1", "conv_out": "conv2", "skip": "conv_shortcut"})
PIXEL_ATTENTION = [QKV, *renamed({"out": "to_out.0"})]
MOVQ = renamed(
    {
        "quant": "quant_conv",
        "post_quant": "post_quant_conv",
        "codebook.embedding": "quantize.embedding",
        "encoder.conv_in": "encoder.conv_in",
        "encoder.norm_out": "encoder.conv_norm_out",
        "encoder.conv_out": "encoder.conv_out",
        "decoder.conv_in": "decoder.conv_in",
        "decoder.conv_out": "decoder.conv_out",
    }
)


def prior(*, layers: int) -> list[Rule]:
    """DiffusionPrior <-> PriorTransformer."""
    return PRIOR + [r for n in range(layers) for r in under(f"layers.{n}", f"transformer_blocks.{n}", PRIOR_LAYER)]


def unet(*, levels: int, blocks: int) -> list[Rule | Constant]:
    """UNet, with either condition and any input <-> UNet2DConditionModel.

    Our blocks are numbered through all levels, theirs within a level. A level has blocks + 1 of ours: on the way down
    the last one halves, on the way up it also doubles.
    """
    rules = [*UNET, *TEXT_IMAGE_CONDITION, *IMAGE_CONDITION]
    for level in range(levels):
        first, theirs = level * (blocks + 1), f"down_blocks.{level}"
        for n in range(blocks):
            rules += _unet_block(f"down.{first + n}", theirs, n)
        rules += under(f"down.{first + blocks}.res", f"{theirs}.downsamplers.0", FILM_BLOCK)
    for level in range(levels):
        first, theirs = level * (blocks + 1), f"up_blocks.{level}"
        for n in range(blocks + 1):
            rules += _unet_block(f"up.{first + n}", theirs, n)
        rules += under(f"up.{first + blocks}.resample", f"{theirs}.upsamplers.0", FILM_BLOCK)
    return rules + _unet_block("middle.0", "mid_block", 0) + _unet_block("middle.1", "mid_block", 1)


def _unet_block(ours: str, theirs: str, n: int) -> list[Rule]:
    res = under(f"{ours}.res", f"{theirs}.resnets.{n}", FILM_BLOCK)
    return res + under(f"{ours}.attention", f"{theirs}.attentions.{n}", CONTEXT_ATTENTION)


def movq(*, levels: int, blocks: int, attention_levels: Collection[int]) -> list[Rule]:
    """MoVQ <-> VQModel with norm_type="spatial"."""
    attend = [level in attention_levels for level in range(levels)]
    encoder = GROUP_NORM_BLOCK + CONV_BLOCK, [*PIXEL_ATTENTION, *renamed({"norm": "group_norm"})]
    decoder = SPATIAL_NORM_BLOCK + CONV_BLOCK, [*PIXEL_ATTENTION, *under("norm", "spatial_norm", SPATIAL_NORM)]
    rules = MOVQ + under("decoder.norm_out", "decoder.conv_norm_out", SPATIAL_NORM)
    for i, attends in enumerate(attend):
        down = f"encoder.down_blocks.{i}"
        rules += movq_level(f"encoder.levels.{i}", f"{down}.resnets", f"{down}.attentions", attends, blocks, *encoder)
    for i, attends in enumerate(reversed(attend)):
        up = f"decoder.up_blocks.{i}"
        rules += movq_level(f"decoder.levels.{i}", f"{up}.resnets", f"{up}.attentions", attends, blocks + 1, *decoder)
    rules += _movq_middle("encoder", *encoder) + _movq_middle("decoder", *decoder)
    for i in range(levels - 1):
        rules += renamed({f"encoder.halving.{i}.1": f"encoder.down_blocks.{i}.downsamplers.0.conv"})
        rules += renamed({f"decoder.doubling.{i}.1": f"decoder.up_blocks.{i}.upsamplers.0.conv"})
    return rules


def movq_level(
    ours: str, resnets: str, attentions: str, attends: bool, blocks: int, block: list[Rule], attention: list[Rule]
) -> list[Rule]:
    """One level. Our list of blocks has an attention after each block, if any; theirs are two lists."""
    stride = 2 if attends else 1
    rules = []
    for n in range(blocks):
        rules += under(f"{ours}.blocks.{stride * n}", f"{resnets}.{n}", block)
        if attends:
            rules += under(f"{ours}.blocks.{stride * n + 1}", f"{attentions}.{n}", attention)
    return rules


def _movq_middle(side: str, block: list[Rule], attention: list[Rule]) -> list[Rule]:
    ours, theirs = f"{side}.middle.blocks", f"{side}.mid_block"
    first, last = (under(f"{ours}.{2 * n}", f"{theirs}.resnets.{n}", block) for n in (0, 1))
    return first + last + under(f"{ours}.1", f"{theirs}.attentions.0", attention)
