"""Loading holds no more than the weights, and gives what the file holds."""

import pytest
import torch
from fixtures.system import PARTS
from safetensors.torch import load_file

from open_kandinsky.loading import is_finite, trained
from open_kandinsky.weights import store
from open_kandinsky.weights.keymap import KeyMap, Rule, stacked


@pytest.mark.parametrize("part", PARTS)
def test_a_loaded_network_has_the_files_numbers_and_convolutions_in_channels_last(system, part):
    held, network = load_file(system / part / store.WEIGHTS), trained(system / part)
    state = network.state_dict()
    assert state.keys() == held.keys()
    assert all(state[name].equal(held[name]) for name in held)
    kernels = [p for p in network.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def test_what_is_read_is_no_part_of_the_file(tmp_path):
    store.write(tmp_path / "x.safetensors", {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)})
    read = store.read(tmp_path / "x.safetensors")
    read["a"].zero_()
    assert store.read(tmp_path / "x.safetensors")["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and int(read["b"]) == 7


def test_what_is_taken_over_is_what_is_translated_and_leaves_nothing():
    ours = {"qkv.weight": torch.zeros(6, 2), "out.weight": torch.zeros(2, 2)}
    rules = [Rule("qkv", ("q", "k", "v"), stacked(3)), Rule("out", ("o",))]
    theirs = {f"{name}.weight": torch.randn(2, 2) for name in "qkvo"}
    keymap = KeyMap(rules, ours)
    expected, given = keymap.to_ours(theirs), dict(theirs)
    found = keymap.to_ours_in_place(given)
    assert not given and found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in found)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 3, 5])
def test_one_that_is_no_number_is_found(value, at):
    x = torch.randn(6)
    assert is_finite(x) and is_finite(x.sum())
    x[at] = value
    assert not is_finite(x) and not is_finite(x.bfloat16())
