"""Published configs and key lists of encoders and networks, at full size: read as ours, and written as theirs."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from open_kandinsky.weights.diffusers import clip, config
from open_kandinsky.weights.keymap import KeyMap

DATA = Path(__file__).parents[1] / "fixtures" / "data"
CONF = str(Path(__file__).parents[2] / "conf")
BODIES = {
    ("21", "unet"): "network/unet=kandinsky21",
    ("22", "unet"): "network/unet=kandinsky22",
    ("21", "movq"): "network/movq=movq_67m",
}
# ViT-bigG/14's, of which the image's is published and the text's is as open_clip has it.
BIG_TEXT = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}
BIG_VISION = {"hidden_size": 1664, "intermediate_size": 8192, "num_attention_heads": 16, "num_hidden_layers": 48}
BIG = {"projection_dim": 1280, "hidden_act": "gelu"}
LARGE = {"projection_dim": 768, "hidden_act": "quick_gelu"}
LARGE_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
LARGE_VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
CLIPS = {
    "L14": ("21", {**LARGE_TEXT, **LARGE}, {**LARGE_VISION, **LARGE, "patch_size": 14}),
    "bigG14": ("22", {**BIG_TEXT, **BIG}, {**BIG_VISION, **BIG, "patch_size": 14}),
}


def node(version, choice):
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose(None, overrides=[f"+dims=kandinsky{version}", f"+{choice}"])
        return OmegaConf.to_container(cfg.stage.network, resolve=True)


def published(version, name):
    return json.loads((DATA / f"configs_diffusers{version}.json").read_text())[name]


def manifest(name):
    return json.loads((DATA / "manifests" / f"{name}.json").read_text())


@pytest.mark.parametrize(("version", "name"), BODIES)
def test_a_published_config_is_the_one_in_conf(version, name):
    assert getattr(config, name)(published(version, name), "here") == node(version, BODIES[version, name])


@pytest.mark.parametrize(("version", "name"), BODIES)
def test_ours_is_written_as_published(version, name):
    theirs = published(version, name)
    made = getattr(config, f"as_{name}")(node(version, BODIES[version, name]), 64)
    assert {key: made[key] for key in made if key in theirs} == {key: theirs[key] for key in made if key in theirs}
    assert getattr(config, name)(made, "here") == node(version, BODIES[version, name])


@pytest.mark.parametrize("version", ["21", "22"])
def test_a_prior_comes_back(version):
    ours = node(version, "network/prior=diffusion")
    assert config.prior(config.as_prior(ours), "here") == ours


@pytest.mark.parametrize("name", CLIPS)
def test_full_size_clip_is_complete_in_both_directions(name):
    version, text, vision = CLIPS[name]
    ours = clip.clip(text, vision, "here")
    assert clip.clip(*clip.as_clip(ours), "here") == ours
    with torch.device("meta"):
        state = instantiate(ours, _convert_="all").state_dict()
    rules = clip.towers(text_layers=ours["text"]["layers"], vision_layers=ours["vision"]["layers"])
    expected = manifest(f"diffusers{version}_prior_clip_text_{name}")
    expected |= manifest(f"diffusers{version}_prior_clip_vision_{name}")
    state.pop(clip.LOGIT_SCALE)
    assert shapes(KeyMap(rules, state).to_theirs(state)) == expected
    theirs = {key: torch.empty(shape, device="meta") for key, shape in expected.items()}
    assert shapes(KeyMap(rules, state).to_ours(theirs)) == shapes(state)


def test_full_size_multilingual_encoder_is_complete_in_both_directions(monkeypatch):
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: None)
    ours = clip.network({"numDims": 768}, "nowhere")
    with torch.device("meta"):
        state = instantiate(ours, _convert_="all").state_dict()
    expected = manifest("diffusers21_text_encoder_mclip")
    assert shapes(KeyMap(clip.rules(state), state).to_theirs(state)) == expected
    theirs = {key: torch.empty(shape, device="meta") for key, shape in expected.items()}
    older = theirs | {"transformer.embeddings.position_ids": torch.arange(514)[None]}
    state_of, dropped = clip.multilingual_weights(state, older)
    assert shapes(state_of) == shapes(state) and dropped == {"transformer.embeddings.position_ids": 1}


def shapes(state):
    return {key: list(tensor.shape) for key, tensor in state.items()}
