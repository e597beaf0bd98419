"""Weight maps between our networks and diffusers': complete at full size, exact at any size, and strict."""

import json
from pathlib import Path

import pytest
import torch
from fixtures.mapped import image, movq, prior, shapes, text_image, unet
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from open_kandinsky.weights import diffusers
from open_kandinsky.weights.keymap import SAME, Constant, KeyMap, Rule, chain, leading, pointwise, renamed, stacked

DATA = Path(__file__).parents[1] / "fixtures" / "data"
PRIOR = diffusers.prior(layers=20)
UNET = diffusers.unet(levels=4, blocks=3)
MOVQ = diffusers.movq(levels=4, blocks=2, attention_levels=[3])
OFFICIAL = {
    "diffusers21_prior": (PRIOR, "dims=kandinsky21", "network/prior=diffusion"),
    "diffusers21_unet": (UNET, "dims=kandinsky21", "network/unet=kandinsky21"),
    "diffusers21_unet_inpaint": (UNET, "dims=kandinsky21", "network/unet=kandinsky21_inpainting"),
    "diffusers21_movq": (MOVQ, "dims=kandinsky21", "network/movq=movq_67m"),
    "diffusers22_prior": (PRIOR, "dims=kandinsky22", "network/prior=diffusion"),
    "diffusers22_unet": (UNET, "dims=kandinsky22", "network/unet=kandinsky22"),
    "diffusers22_unet_inpaint": (UNET, "dims=kandinsky22", "network/unet=kandinsky22", "+stage.network.in_channels=9"),
    "diffusers22_movq": (MOVQ, "dims=kandinsky22", "network/movq=movq_67m"),
}


def full_size(*choices):
    conf = str(Path(__file__).parents[2] / "conf")
    with initialize_config_dir(conf, version_base="1.3"), torch.device("meta"):
        cfg = compose(None, overrides=[f"+{choice}" for choice in choices])
        return instantiate(cfg.stage.network, _convert_="all").state_dict()


@pytest.mark.parametrize("manifest", OFFICIAL)
def test_full_size_is_complete_in_both_directions(manifest):
    """Every official key and shape comes from ours and goes into ours, with nothing left over."""
    rules, *choices = OFFICIAL[manifest]
    expected = json.loads((DATA / "manifests" / f"{manifest}.json").read_text())
    ours = full_size(*choices)
    assert shapes(diffusers.to_diffusers(rules, ours)) == expected
    theirs = {key: torch.empty(shape, device="meta") for key, shape in expected.items()}
    assert shapes(diffusers.from_diffusers(rules, ours, theirs)) == shapes(ours)


TINY = {
    "prior": prior,
    "unet21": lambda: unet(text_image()),
    "unet22": lambda: unet(image(), levels=2, blocks=2),
    "unet of one level": lambda: unet(image(), levels=1, blocks=3),
    "movq": movq,
    "movq without attention": lambda: movq(levels=2, blocks=3, attention_levels=()),
}


@pytest.mark.parametrize("name", TINY)
def test_there_and_back_is_bit_exact(name):
    network, rules = TINY[name]()
    state = network.state_dict()
    back = diffusers.from_diffusers(rules, state, diffusers.to_diffusers(rules, state))
    assert list(back) == list(state)
    for key in state:
        torch.testing.assert_close(back[key], state[key], rtol=0, atol=0)
    network.load_state_dict(back)


def test_exported_tensors_share_no_memory():
    """safetensors refuses to write tensors that do."""
    network, rules = prior()
    exported = diffusers.to_diffusers(rules, network.state_dict())
    assert len({tensor.untyped_storage().data_ptr() for tensor in exported.values()}) == len(exported)


def exported_prior():
    network, rules = prior()
    return rules, network.state_dict(), diffusers.to_diffusers(rules, network.state_dict())


def test_left_over_key_is_refused_by_name():
    rules, ours, theirs = exported_prior()
    with pytest.raises(ValueError, match=r"left over 'norm_outt.weight' \(nearest: 'norm_out.weight'\)"):
        diffusers.from_diffusers(rules, ours, theirs | {"norm_outt.weight": torch.zeros(16)})
    with pytest.raises(ValueError, match=r"left over 'x_tt.weight' \(nearest: 'x_t.weight'\)"):
        KeyMap(rules, ours).to_theirs(ours | {"x_tt.weight": torch.zeros(1)})


def test_missing_key_is_refused_by_name():
    rules, ours, theirs = exported_prior()
    theirs["prd_embeding"] = theirs.pop("prd_embedding")
    with pytest.raises(ValueError, match=r"missing 'prd_embedding' \(nearest: 'prd_embeding'\)"):
        diffusers.from_diffusers(rules, ours, theirs)
    with pytest.raises(ValueError, match="1 keys missing, 0 left over: missing 'readout'"):
        KeyMap(rules, ours).to_theirs({key: ours[key] for key in ours if key != "readout"})


def test_a_part_of_a_join_may_not_be_missing():
    rules, ours, theirs = exported_prior()
    del theirs["transformer_blocks.1.attn1.to_k.bias"]
    with pytest.raises(ValueError, match=r"missing 'transformer_blocks.1.attn1.to_k.bias'"):
        diffusers.from_diffusers(rules, ours, theirs)


def test_wrong_shape_is_refused_by_name():
    rules, ours, theirs = exported_prior()
    with pytest.raises(ValueError, match=r"'clip_mean' has shape \[6\], expected \[1, 6\]"):
        diffusers.from_diffusers(rules, ours, theirs | {"clip_mean": torch.zeros(6)})
    with pytest.raises(ValueError, match=r"'readout' has shape \[1, 16\], expected \[16\]"):
        KeyMap(rules, ours).to_theirs(ours | {"readout": torch.zeros(1, 16)})


def test_a_join_of_parts_of_uneven_shape_is_refused():
    """Concatenated they would have the right shape, and wrong numbers."""
    rules, ours, theirs = exported_prior()
    q, k = "transformer_blocks.0.attn1.to_q.bias", "transformer_blocks.0.attn1.to_k.bias"
    with pytest.raises(ValueError, match=r"to_q.bias' has shape \[17\], expected \[16\]"):
        diffusers.from_diffusers(rules, ours, theirs | {q: torch.zeros(17), k: torch.zeros(15)})


def test_network_of_another_depth_is_refused():
    network, _ = prior()
    with pytest.raises(ValueError, match="no rule for our 'layers.2"):
        diffusers.to_diffusers(diffusers.prior(layers=2), network.state_dict())


def test_standardised_latents_have_no_place_in_diffusers():
    network, rules = unet(image())
    network.standardise.set(torch.zeros(4), torch.tensor([1.0, 1.0, 2.0, 1.0]))
    with pytest.raises(ValueError, match=r"'standardise.std' is not 1 everywhere"):
        diffusers.to_diffusers(rules, network.state_dict())


def test_statistics_of_the_prior_travel():
    network, rules = prior()
    network.standardise.set(torch.arange(6.0), torch.arange(6.0) + 1)
    theirs = diffusers.to_diffusers(rules, network.state_dict())
    assert theirs["clip_mean"].tolist() == [[0, 1, 2, 3, 4, 5]]
    assert theirs["clip_std"].tolist() == [[1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize(
    ("change", "ours", "theirs"),
    [
        (SAME, [3], [[3]]),
        (stacked(3), [6, 5], [[2, 5], [2, 5], [2, 5]]),
        (leading(2), [1, 5], [[1, 1, 1, 5]]),
        (pointwise(2), [3, 5], [[3, 5, 1, 1]]),
        (pointwise(1), [3], [[3]]),
        (chain(stacked(2), pointwise(1)), [4, 5], [[2, 5, 1], [2, 5, 1]]),
    ],
)
def test_changes_undo_themselves(change, ours, theirs):
    x = torch.randn(ours)
    parts = change.split(x)
    assert [list(part.shape) for part in parts] == theirs
    torch.testing.assert_close(change.join(parts), x, rtol=0, atol=0)


def test_rules_are_of_whole_modules_and_of_tensors():
    rules = [*renamed({"a": "x.y"}), Rule("b", ("z",)), Constant("c.scale", 2)]
    ours = {"a.weight": torch.ones(2), "a.bias": torch.zeros(2), "b": torch.ones(1), "c.scale": torch.full((3,), 2.0)}
    theirs = KeyMap(rules, ours).to_theirs(ours)
    assert sorted(theirs) == ["x.y.bias", "x.y.weight", "z"]
    assert KeyMap(rules, ours).to_ours(theirs)["c.scale"].tolist() == [2, 2, 2]
