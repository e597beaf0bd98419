"""M-CLIP, Kandinsky 2.1's multilingual text encoder, as transformers and diffusers keep it: config and keys.

Our CLIP as transformers': keys and configs of the text tower and the vision tower, each with its projection.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from open_kandinsky.core.errors import UserError
from open_kandinsky.weights.diffusers.config import NETWORKS, Config, expect, refuse_other
from open_kandinsky.weights.keymap import Change, KeyMap, Rule, Rules, State, renamed, stacked, under
from open_kandinsky.weights.part import Picked

LENGTH = 77  # positions of a caption, whatever the tokenizer's own limit is
TARGET = "open_kandinsky.networks.text.MultilingualClip"
# XLM-R large, where a config does not say.
LARGE = {
    "vocab_size": 250002,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
}
TEXT_BUFFERS = ("transformer.embeddings.position_ids", "transformer.embeddings.token_type_ids")  # older files'


def network(cfg: Mapping[str, Any], tokenizer: str) -> dict[str, Any]:
    """MultilingualCLIP's config.json as MultilingualClip's."""
    sizes = {key: cfg.get(key, value) for key, value in LARGE.items()}
    return {"_target_": TARGET, "dim": cfg["numDims"], "length": LENGTH, "transformer": sizes, "tokenizer": tokenizer}


def as_config(ours: Mapping[str, Any]) -> dict[str, Any]:
    sizes = dict(ours["transformer"])
    own = {"transformerDimensions": sizes["hidden_size"], "numDims": ours["dim"]}
    arguments = {"transformerDimSize": sizes["hidden_size"], "imageDimSize": ours["dim"]}
    return {"architectures": ["MultilingualCLIP"], "model_type": "M-CLIP", **own, **arguments, **sizes}


def rules(like: State) -> Rules:
    """The transformer is transformers' own on both sides."""
    same = {key: key for key in like if key.startswith("transformer.")}
    return renamed({**same, "project": "LinearTransformation"})


def multilingual_weights(like: State, theirs: State) -> Picked:
    """Their state dict as ours."""
    given = {key: tensor for key, tensor in theirs.items() if key not in TEXT_BUFFERS}
    return Picked(KeyMap(rules(like), like).to_ours(given), {key: 1 for key in TEXT_BUFFERS if key in theirs})


TRANSPOSED = Change(lambda parts: parts[0].T.contiguous(), lambda x: [x.T.contiguous()])
QKV = [
    Rule(f"attn.in_proj_{leaf}", tuple(f"self_attn.{x}_proj.{leaf}" for x in "qkv"), stacked(3))
    for leaf in ("weight", "bias")
]
LAYER = [
    *QKV,
    *renamed(
        {
            "attn.out_proj": "self_attn.out_proj",
            "ln_1": "layer_norm1",
            "ln_2": "layer_norm2",
            "mlp.c_fc": "mlp.fc1",
            "mlp.c_proj": "mlp.fc2",
        }
    ),
]
TEXT = [
    *renamed(
        {
            "model.token_embedding": "text_model.embeddings.token_embedding",
            "model.positional_embedding": "text_model.embeddings.position_embedding.weight",
            "model.ln_final": "text_model.final_layer_norm",
        }
    ),
    Rule("model.text_projection", ("text_projection.weight",), TRANSPOSED),
]
VISION = [
    *renamed(
        {
            "model.visual.conv1": "vision_model.embeddings.patch_embedding",
            "model.visual.class_embedding": "vision_model.embeddings.class_embedding",
            "model.visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
            "model.visual.ln_pre": "vision_model.pre_layrnorm",
            "model.visual.ln_post": "vision_model.post_layernorm",
        }
    ),
    Rule("model.visual.proj", ("visual_projection.weight",), TRANSPOSED),
]
# Of contrastive training: towers in folders of their own have none. CLIPs are trained until theirs meets its bound.
LOGIT_SCALE, LARGEST = "model.logit_scale", math.log(100)
BUFFERS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")  # 0, 1, ...; older files'
# What transformers' classes are unless a config says otherwise.
DEFAULT = {"projection_dim": 512, "hidden_act": "quick_gelu", "num_hidden_layers": 12}
DEFAULT_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "vocab_size": 49408}
DEFAULT_TEXT |= {"max_position_embeddings": 77, **DEFAULT}
DEFAULT_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, **DEFAULT}
DEFAULT_VISION |= {"image_size": 224, "patch_size": 32}


def towers(*, text_layers: int, vision_layers: int) -> Rules:
    """Clip <-> CLIPTextModelWithProjection and CLIPVisionModelWithProjection, or CLIPModel, which is both."""
    text = [
        rule
        for n in range(text_layers)
        for rule in under(f"model.transformer.resblocks.{n}", f"text_model.encoder.layers.{n}", LAYER)
    ]
    vision = [
        rule
        for n in range(vision_layers)
        for rule in under(f"model.visual.transformer.resblocks.{n}", f"vision_model.encoder.layers.{n}", LAYER)
    ]
    return TEXT + VISION + text + vision


def clip_weights(rules: Rules, like: State, theirs: State, logit_scale: float) -> Picked:
    """Both towers' tensors as ours. `logit_scale` is taken where theirs have none."""
    given = {key: tensor for key, tensor in theirs.items() if key not in (*BUFFERS, "logit_scale")}
    ours = KeyMap(rules, {key: like[key] for key in like if key != LOGIT_SCALE}).to_ours(given)
    ours[LOGIT_SCALE] = theirs.get("logit_scale", torch.tensor(logit_scale))
    return Picked(ours, {key: 1 for key in BUFFERS if key in theirs})


def clip(text: Config, vision: Config, where: str) -> dict[str, Any]:
    """CLIPTextModelWithProjection's and CLIPVisionModelWithProjection's as Clip's."""
    text, vision = {**DEFAULT_TEXT, **text}, {**DEFAULT_VISION, **vision}
    for tower in (text, vision):
        expect(tower, where, layer_norm_eps=1e-5, attention_dropout=0.0)
    expect(text, where, vocab_size=49408)
    same = [(tower["projection_dim"], tower["hidden_act"]) for tower in (text, vision)]
    if same[0] != same[1] or same[0][1] not in ("gelu", "quick_gelu"):
        raise UserError(f"{where}: projection_dim and hidden_act of text are {same[0]}, of images {same[1]}")
    width, heads = vision["hidden_size"], vision["num_attention_heads"]
    sides = {"image_size": vision["image_size"], "patch_size": vision["patch_size"], "head_width": width // heads}
    return {
        "_target_": f"{NETWORKS}.clip.Clip",
        "dim": text["projection_dim"],
        "vision": {**sides, "layers": vision["num_hidden_layers"], "width": width, "mlp_ratio": mlp_ratio(vision)},
        "text": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
            "mlp_ratio": mlp_ratio(text),
        },
        "quick_gelu": text["hidden_act"] == "quick_gelu",
    }


def as_clip(ours: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """The text tower's config.json and the vision tower's. ValueError for what only open_clip has."""
    refuse_other(ours, "clip.Clip", "CLIPTextModelWithProjection")
    towers = [dict(ours[name]) for name in ("text", "vision")]
    text, vision = ({"mlp_ratio": 4.0, **tower} for tower in towers)
    head_width = vision.pop("head_width", 64)
    made = [tower(ours, x) for x in (text, vision)]
    made[0] |= {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model"}
    made[0] |= {"num_attention_heads": text.pop("heads"), "max_position_embeddings": text.pop("context_length")}
    made[0] |= {
        "vocab_size": text.pop("vocab_size"),
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }
    made[1] |= {"architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model"}
    made[1] |= {"num_attention_heads": made[1]["hidden_size"] // head_width}
    made[1] |= {name: vision.pop(name) for name in ("image_size", "patch_size")}
    if stray := [*text, *vision]:
        raise UserError(f"transformers' CLIP has no {stray[0]!r}, which this one's config.yaml gives")
    return made[0], made[1]


def tower(ours: Config, sizes: dict[str, Any]) -> dict[str, Any]:
    """What both have; takes it out of `sizes`."""
    width = sizes.pop("width")
    return {
        "hidden_size": width,
        "intermediate_size": int(width * sizes.pop("mlp_ratio")),
        "num_hidden_layers": sizes.pop("layers"),
        "projection_dim": ours["dim"],
        "hidden_act": "quick_gelu" if ours["quick_gelu"] else "gelu",
        "layer_norm_eps": 1e-5,
    }


def mlp_ratio(cfg: Config) -> float:
    """open_clip rounds width x ratio down: the ratio is such that this gives the layer's size."""
    ratio = cfg["intermediate_size"] / cfg["hidden_size"]
    whole = int(cfg["hidden_size"] * ratio) == cfg["intermediate_size"]
    return ratio if whole else math.nextafter(ratio, math.inf)
