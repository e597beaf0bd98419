"""The original 2.1 files: complete at full size, dealt out head by head; and what a training leaves beside weights."""

import json
from pathlib import Path

import pytest
import torch
from fixtures.mapped import movq, prior, shapes, text_image, unet
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from open_kandinsky.weights import diffusers, kandinsky21
from open_kandinsky.weights.kandinsky21 import folder
from open_kandinsky.weights.keymap import KeyMap

MANIFESTS = Path(__file__).parents[1] / "fixtures" / "data" / "manifests"
CONF = str(Path(__file__).parents[2] / "conf")
PRIOR = kandinsky21.prior(layers=20, head_channels=64)
UNET = kandinsky21.unet(levels=4, blocks=3, attention_levels=[1, 2, 3], head_channels=64)
MOVQ = kandinsky21.movq(levels=4, blocks=2, attention_levels=[3])
STATISTICS = dict.fromkeys(kandinsky21.STATISTICS, [768])  # their file has no names
OFFICIAL = {
    "orig21_prior": (PRIOR, STATISTICS, "network/prior=diffusion"),
    "orig21_unet_t2i": (UNET, {}, "network/unet=kandinsky21"),
    "orig21_unet_inpaint": (UNET, {}, "network/unet=kandinsky21_inpainting"),
    "orig21_movq": (MOVQ, {}, "network/movq=movq_67m"),
    "orig_movqgan_102M": (kandinsky21.movq(levels=4, blocks=4, attention_levels=[3]), {}, "network/movq=movq_102m"),
    "orig_movqgan_270M": (MOVQ, {}, "network/movq=movq_270m"),
}


def full_size(choice):
    with initialize_config_dir(CONF, version_base="1.3"), torch.device("meta"):
        cfg = compose(None, overrides=["+dims=kandinsky21", f"+{choice}"])
        return instantiate(cfg.stage.network, _convert_="all").state_dict()


@pytest.mark.parametrize("manifest", OFFICIAL)
def test_full_size_is_complete_in_both_directions(manifest):
    rules, more, choice = OFFICIAL[manifest]
    expected = json.loads((MANIFESTS / f"{manifest}.json").read_text()) | more
    ours = full_size(choice)
    keymap = KeyMap(rules, ours)
    assert shapes(keymap.to_theirs(ours)) == expected
    theirs = {key: torch.empty(shape, device="meta") for key, shape in expected.items()}
    assert shapes(keymap.to_ours(theirs)) == shapes(ours)


# network, its diffusers' rules, its original rules: heads of 8 and of 16 channels
TINY = {
    "prior": lambda: (*prior(), kandinsky21.prior(layers=3, head_channels=8)),
    "unet": lambda: (
        *unet(text_image()),
        kandinsky21.unet(levels=3, blocks=1, attention_levels=[1], head_channels=16),
    ),
    "movq": lambda: (*movq(), kandinsky21.movq(levels=3, blocks=1, attention_levels=(0, 2))),
    "movq without attention": lambda: (
        *movq(levels=2, blocks=3, attention_levels=()),
        kandinsky21.movq(levels=2, blocks=3, attention_levels=()),
    ),
}


@pytest.mark.parametrize("name", TINY)
def test_there_and_back_is_bit_exact(name):
    network, _, rules = TINY[name]()
    state = network.state_dict()
    back = KeyMap(rules, state).to_ours(KeyMap(rules, state).to_theirs(state))
    assert list(back) == list(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


def dealt(rows, parts, c):
    """Rows in runs of a head's channels, dealt out in turn: the documented way from the originals to diffusers."""
    hands = [[] for _ in range(parts)]
    for i, start in enumerate(range(0, len(rows), c)):
        hands[i % parts].append(rows[start : start + c])
    return [torch.cat(hand) for hand in hands]


# original -> diffusers, by hand: their module, how many parts, a head's channels, diffusers' modules
PRIOR_QKV = "transformer_blocks.1.attn1.to_"
DEALT = {
    "prior": [("model.transformer.resblocks.1.attn.c_qkv", 8, [f"{PRIOR_QKV}{x}" for x in "qkv"])],
    "unet": [
        ("input_blocks.3.1.qkv", 16, [f"down_blocks.1.attentions.0.to_{x}" for x in "qkv"]),
        ("input_blocks.3.1.encoder_kv", 16, [f"down_blocks.1.attentions.0.add_{x}_proj" for x in "kv"]),
        ("middle_block.1.qkv", 16, [f"mid_block.attentions.0.to_{x}" for x in "qkv"]),
        ("output_blocks.2.1.encoder_kv", 16, [f"up_blocks.1.attentions.0.add_{x}_proj" for x in "kv"]),
    ],
}


@pytest.mark.parametrize("name", DEALT)
@pytest.mark.parametrize("leaf", ["weight", "bias"])
def test_heads_are_dealt_out_as_documented(name, leaf):
    """original -> ours -> diffusers against original -> diffusers, of tensors whose every number differs."""
    network, to_diffusers, rules = TINY[name]()
    state = network.state_dict()
    original = KeyMap(rules, state).theirs
    theirs = {key: torch.arange(shape.numel()).float().reshape(shape) for key, shape in original.items()}
    ours = KeyMap(rules, state).to_ours(theirs)
    ours |= {key: state[key] for key in state if key.startswith("standardise")}
    reached = diffusers.to_diffusers(to_diffusers, ours)
    for module, c, parts in DEALT[name]:
        tensor = theirs[f"{module}.{leaf}"]
        by_hand = dealt(tensor.squeeze(-1) if leaf == "weight" and tensor.ndim == 3 else tensor, len(parts), c)
        for part, rows in zip(parts, by_hand, strict=True):
            assert torch.equal(reached[f"{part}.{leaf}"], rows), part


def test_everything_else_reaches_diffusers_as_it_was():
    network, to_diffusers, rules = TINY["unet"]()
    state = network.state_dict()
    theirs, reached = KeyMap(rules, state).to_theirs(state), diffusers.to_diffusers(to_diffusers, state)
    table = {
        "input_blocks.1.0.in_layers.2": "down_blocks.0.resnets.0.conv1",
        "input_blocks.2.0.emb_layers.1": "down_blocks.0.downsamplers.0.time_emb_proj",
        "input_blocks.5.0.skip_connection": "down_blocks.2.resnets.0.conv_shortcut",
        "output_blocks.1.1.out_layers.3": "up_blocks.0.upsamplers.0.conv2",
        "output_blocks.3.2.out_layers.0": "up_blocks.1.upsamplers.0.norm2",
        "output_blocks.5.0.in_layers.0": "up_blocks.2.resnets.1.norm1",
        "ln_model_n": "add_embedding.text_norm",
        "clip_to_seq": "encoder_hid_proj.image_embeds",
        "out.2": "conv_out",
    }
    for original, name in table.items():
        assert torch.equal(theirs[f"{original}.weight"], reached[f"{name}.weight"]), original


def test_a_left_over_key_is_refused_by_name():
    network, _, rules = TINY["movq"]()
    state = network.state_dict()
    keymap = KeyMap(rules, state)
    with pytest.raises(ValueError, match=r"left over 'encoder.conv_inn.bias' \(nearest: 'encoder.conv_in.bias'\)"):
        keymap.to_ours(keymap.to_theirs(state) | {"encoder.conv_inn.bias": torch.zeros(1)})


@pytest.fixture
def checkpoint():
    """As LitEma keeps names: `ema_<module>.<parameter without its dots>`, two numbers, and critics."""
    network, _, rules = TINY["movq"]()
    last = KeyMap(rules, network.state_dict()).to_theirs(network.state_dict())
    averages = {}
    for key, tensor in last.items():
        module, name = key.split(".", 1)
        averages[f"ema_{module}.{name.replace('.', '')}"] = tensor + 1
    numbers = {f"ema_{module}.{n}": torch.tensor(1) for module in folder.MODULES for n in ("decay", "num_updates")}
    critics = {
        "loss.critic.0.weight": torch.ones(2),
        "loss.perceptual_loss.lin0.model.1.weight": torch.ones(1),
    }
    return last, {**last, **averages, **numbers, **critics}


def test_a_training_checkpoint_as_it_was_last_and_averaged(checkpoint):
    last, whole = checkpoint
    state, dropped = folder.raw(whole)
    assert state.keys() == last.keys() and all(torch.equal(state[k], last[k]) for k in last)
    assert dropped["loss."] == 2 and sum(dropped.values()) == len(whole) - len(last)
    state, dropped = folder.ema(whole)
    assert state.keys() == last.keys() and all(torch.equal(state[k], last[k] + 1) for k in last)
    assert dropped == {"loss.": 2, "not averaged": len(last)}


def test_averages_that_do_not_fit_the_weights_are_refused(checkpoint):
    last, whole = checkpoint
    with pytest.raises(ValueError, match="hold no ema_encoder"):
        folder.ema(last)
    with pytest.raises(ValueError, match="1 averaged weights are of no weight, 'ema_encoder.spare'"):
        folder.ema(whole | {"ema_encoder.spare": torch.ones(1)})
    del whole["ema_encoder.conv_inweight"]
    with pytest.raises(ValueError, match="1 averaged weights are missing, 'ema_encoder.conv_inweight'"):
        folder.ema(whole)
