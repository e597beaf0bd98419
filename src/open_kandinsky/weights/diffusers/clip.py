"""The text encoders as transformers keeps them: configs and keys, to ours and back.

First M-CLIP, Kandinsky 2.1's multilingual encoder of the decoder's prompts; then CLIP, whose text tower and vision
tower are two models of transformers', each with its projection.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from open_kandinsky.core.errors import UserError
from open_kandinsky.weights.diffusers.config import NETWORKS, Config, expect, expect_network
from open_kandinsky.weights.keymap import Change, KeyMap, Rule, Rules, State, renamed, stacked, under
from open_kandinsky.weights.part import Picked

LENGTH = 77  # tokens of a caption; the tokenizer's own limit is larger
TARGET = "open_kandinsky.networks.text.MultilingualClip"
# The defaults of a config: XLM-RoBERTa large.
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
TEXT_BUFFERS = ("transformer.embeddings.position_ids", "transformer.embeddings.token_type_ids")  # in older files


def network(cfg: Mapping[str, Any], tokenizer: str) -> dict[str, Any]:
    """MultilingualCLIP's config.json as the config of our MultilingualClip."""
    sizes = {key: cfg.get(key, value) for key, value in LARGE.items()}
    return {"_target_": TARGET, "dim": cfg["numDims"], "length": LENGTH, "transformer": sizes, "tokenizer": tokenizer}


def as_config(ours: Mapping[str, Any]) -> dict[str, Any]:
    """Our MultilingualClip's config as MultilingualCLIP's config.json."""
    width, dim = ours["transformer"]["hidden_size"], ours["dim"]
    names = {"architectures": ["MultilingualCLIP"], "model_type": "M-CLIP"}
    dims = {"transformerDimensions": width, "numDims": dim, "transformerDimSize": width, "imageDimSize": dim}
    return {**names, **dims, **ours["transformer"]}


def rules(like: State) -> Rules:
    """Both sides have transformers' own XLM-RoBERTa: only the projection's name differs."""
    same = {key: key for key in like if key.startswith("transformer.")}
    return renamed({**same, "project": "LinearTransformation"})


def multilingual_weights(like: State, theirs: State) -> Picked:
    """Their state dict as ours."""
    weights = {key: tensor for key, tensor in theirs.items() if key not in TEXT_BUFFERS}
    return Picked(KeyMap(rules(like), like).to_ours(weights), {key: 1 for key in TEXT_BUFFERS if key in theirs})


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
# Of contrastive training; folders of single towers have none. Trained CLIPs have reached the largest value.
LOGIT_SCALE, LARGEST = "model.logit_scale", math.log(100)
BUFFERS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")  # 0, 1, ...; in older files
# The defaults of transformers' classes.
DEFAULT = {"projection_dim": 512, "hidden_act": "quick_gelu", "num_hidden_layers": 12}
DEFAULT_TEXT = {
    **DEFAULT,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
}
DEFAULT_VISION = {
    **DEFAULT,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}


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
    """Both towers' tensors as ours. `logit_scale` is used where theirs have none."""
    weights = {key: tensor for key, tensor in theirs.items() if key not in (*BUFFERS, "logit_scale")}
    ours = KeyMap(rules, {key: like[key] for key in like if key != LOGIT_SCALE}).to_ours(weights)
    ours[LOGIT_SCALE] = theirs.get("logit_scale", torch.tensor(logit_scale))
    return Picked(ours, {key: 1 for key in BUFFERS if key in theirs})


def clip(text: Config, vision: Config, where: str) -> dict[str, Any]:
    """The configs of CLIPTextModelWithProjection and CLIPVisionModelWithProjection as the config of our Clip."""
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
    expect_network(ours, "clip.Clip", "CLIPTextModelWithProjection")
    text, vision = ({"mlp_ratio": 4.0, **ours[name]} for name in ("text", "vision"))
    as_text = {
        **as_tower(ours, text),
        "architectures": ["CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "num_attention_heads": text.pop("heads"),
        "max_position_embeddings": text.pop("context_length"),
        "vocab_size": text.pop("vocab_size"),
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }
    as_vision = {
        **as_tower(ours, vision),
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "image_size": vision.pop("image_size"),
        "patch_size": vision.pop("patch_size"),
    }
    as_vision["num_attention_heads"] = as_vision["hidden_size"] // vision.pop("head_width", 64)
    if stray := [*text, *vision]:
        raise UserError(f"transformers' CLIP has no {stray[0]!r}, which this one's config.yaml gives")
    return as_text, as_vision


def as_tower(ours: Config, sizes: dict[str, Any]) -> dict[str, Any]:
    """The entries that both towers have, taken out of `sizes`."""
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
    """The ratio from which open_clip, which rounds width x ratio down, gets the layer's size."""
    ratio = cfg["intermediate_size"] / cfg["hidden_size"]
    whole = int(cfg["hidden_size"] * ratio) == cfg["intermediate_size"]
    return ratio if whole else math.nextafter(ratio, math.inf)
