"""Our CLIP against open_clip's own encode functions and against transformers' CLIP, of the same random weights."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from open_kandinsky.networks.clip import Clip
from open_kandinsky.weights.keymap import SAME, Change, KeyMap, Rule, renamed, stacked, under

LENGTH, DIM, LAYERS = 16, 12, 2
CAPTIONS = ["", "a red circle", "two green squares on a very blue background, seen from above and from afar"]

TRANSPOSED = Change(lambda parts: parts[0].T, lambda x: [x.T])
LAYER = [
    *(
        Rule(f"attn.in_proj_{leaf}", tuple(f"self_attn.{x}_proj.{leaf}" for x in "qkv"), stacked(3))
        for leaf in ("weight", "bias")
    ),
    *renamed({"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}),
    *renamed({"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}),
]


def layers(ours, theirs):
    return [r for n in range(LAYERS) for r in under(f"{ours}.{n}", f"{theirs}.{n}", LAYER)]


TEXT = [
    *layers("transformer.resblocks", "text_model.encoder.layers"),
    *renamed({"token_embedding": "text_model.embeddings.token_embedding", "ln_final": "text_model.final_layer_norm"}),
    Rule("positional_embedding", ("text_model.embeddings.position_embedding.weight",), SAME),
    Rule("text_projection", ("text_projection.weight",), TRANSPOSED),
]
VISION = [
    *layers("transformer.resblocks", "vision_model.encoder.layers"),
    *renamed({"ln_pre": "vision_model.pre_layrnorm", "ln_post": "vision_model.post_layernorm"}),
    *renamed({"conv1": "vision_model.embeddings.patch_embedding"}),
    Rule("class_embedding", ("vision_model.embeddings.class_embedding",), SAME),
    Rule("positional_embedding", ("vision_model.embeddings.position_embedding.weight",), SAME),
    Rule("proj", ("visual_projection.weight",), TRANSPOSED),
]


@pytest.fixture(params=[True, False], ids=["quick_gelu", "gelu"])
def clip(request):
    torch.manual_seed(0)
    vision = {"image_size": 28, "layers": LAYERS, "width": 32, "head_width": 16, "patch_size": 14}
    text = {"context_length": LENGTH, "vocab_size": 49408, "width": 24, "heads": 3, "layers": LAYERS}
    clip = Clip(dim=DIM, vision=vision, text=text, quick_gelu=request.param).eval()
    for p in clip.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return clip


def config(quick_gelu, width, heads):
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": heads,
        "num_hidden_layers": LAYERS,
        "projection_dim": DIM,
        "hidden_act": "quick_gelu" if quick_gelu else "gelu",
    }


def is_quick(clip):
    return "Quick" in type(clip.model.visual.transformer.resblocks[0].mlp.gelu).__name__


def assert_same(ours, theirs):
    assert float(theirs.std()) > 0.01
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5


@torch.no_grad()
def test_open_clip(clip):
    pixels, token = torch.randn(3, 3, 28, 28), clip.tokenizer(CAPTIONS)
    assert_same(clip.encode_image(pixels), clip.model.encode_image(pixels))
    assert_same(clip.encode_tokens(token).emb, clip.model.encode_text(token))


@torch.no_grad()
def test_transformers_text(clip):
    sizes = {"vocab_size": 49408, "max_position_embeddings": LENGTH, "bos_token_id": 49406, "eos_token_id": 49407}
    theirs = CLIPTextModelWithProjection(CLIPTextConfig(**config(is_quick(clip), 24, 3), **sizes, pad_token_id=0))
    state = {k: v for k, v in clip.model.state_dict().items() if not k.startswith("visual.") and k != "logit_scale"}
    theirs.load_state_dict(KeyMap(TEXT, state).to_theirs(state))
    token = clip.tokenizer(CAPTIONS)
    ours, reference = clip.encode_tokens(token), theirs.eval()(token)
    assert_same(ours.tokens, reference.last_hidden_state)
    assert_same(ours.emb, reference.text_embeds)


@torch.no_grad()
def test_transformers_vision(clip):
    sizes = {"image_size": 28, "patch_size": 14}
    theirs = CLIPVisionModelWithProjection(CLIPVisionConfig(**config(is_quick(clip), 32, 2), **sizes))
    state = clip.model.visual.state_dict()
    theirs.load_state_dict(KeyMap(VISION, state).to_theirs(state))
    pixels = torch.randn(3, 3, 28, 28)
    assert_same(clip.encode_image(pixels), theirs.eval()(pixels).image_embeds)
