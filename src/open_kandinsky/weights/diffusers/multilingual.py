"""M-CLIP, Kandinsky 2.1's multilingual text encoder, as transformers and diffusers keep it: config and keys."""

from collections.abc import Mapping
from typing import Any

from open_kandinsky.weights.keymap import KeyMap, Rules, State, renamed
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
BUFFERS = ("transformer.embeddings.position_ids", "transformer.embeddings.token_type_ids")  # older files'


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


def joined(like: State, theirs: State) -> Picked:
    """Their state dict as ours."""
    given = {key: tensor for key, tensor in theirs.items() if key not in BUFFERS}
    return Picked(KeyMap(rules(like), like).to_ours(given), {key: 1 for key in BUFFERS if key in theirs})
