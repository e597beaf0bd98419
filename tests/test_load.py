"""From folders to a system: what is written comes back, and what does not fit together is refused by name."""

import shutil

import pytest
import torch
from makers.system import PARTS, untrained
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from open_kandinsky.failures import message
from open_kandinsky.load import load, network


@pytest.fixture
def copy(system, tmp_path):
    return shutil.copytree(system, tmp_path / "copy")


def refused(source, told):
    with pytest.raises(ValueError, match=told) as refusal:
        load(source)
    assert message(refusal.value) == str(refusal.value)


def edit(folder, key, value):
    cfg = OmegaConf.load(folder / "config.yaml")
    OmegaConf.update(cfg, key, value, force_add=True)
    OmegaConf.save(cfg, folder / "config.yaml")


def test_round_trip(system):
    pipe = load(system)
    made = {"clip": pipe.clip, "movq": pipe.movq, "prior": pipe.prior.network, "decoder": pipe.decoder.network}
    for part in PARTS:
        state, written = made[part].state_dict(), load_file(system / part / "weights.safetensors")
        assert state.keys() == written.keys()
        assert all(torch.equal(state[name], written[name]) for name in state), part
        assert not made[part].training and not any(p.requires_grad for p in made[part].parameters())
    assert pipe.prior.sampling.steps == 25 and pipe.decoder.sampling.steps == 3 and pipe.size == 32


def test_in_half_precision_the_schedule_stays_in_double(system):
    pipe = load(system, dtype=torch.bfloat16)
    assert {p.dtype for p in pipe.decoder.network.parameters()} == {torch.bfloat16}
    assert pipe.decoder.alpha_bar.dtype == torch.float64


def test_parts_from_several_folders(system, tmp_path):
    other = untrained("prior_linear", tmp_path)
    pipe = load({"": system, "prior": other})
    assert type(pipe.prior.network).__name__ == "LinearPrior" and pipe.prior.sampling.steps == 1
    refused({"": system, "priro": other}, "no part is called 'priro'; the parts are clip, movq, prior, decoder")


def test_a_part_that_is_missing(copy, tmp_path):
    (copy / "decoder" / "weights.safetensors").unlink()
    refused(copy, r"the decoder is looked for in .*decoder, .*found: \['config.yaml'\]. A run that was stopped")
    refused(tmp_path / "nowhere", "the clip is looked for in .*no such folder")


def test_weights_without_their_config(copy):
    (copy / "movq" / "config.yaml").unlink()
    refused(copy, "movq/config.yaml: no such file")


@pytest.mark.parametrize("text", ["stage: [", "", "stage: {}", "- 1"])
def test_a_config_that_is_none(copy, text):
    (copy / "prior" / "config.yaml").write_text(text)
    refused(copy, "prior/config.yaml")


def test_parts_that_do_not_fit(copy):
    edit(copy / "decoder", "dims.clip", 64)
    refused(copy, "do not belong together: dims.clip is clip .* 32, .*decoder .* 64")


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("stage.network._target_", "os.system"),
        ("stage.network.extra", {"_target_": "subprocess.run", "args": ["true"]}),
        ("stage.alpha_bar._target_", "builtins.eval"),
        ("stage.parameterisation._target_", "torch.load"),
    ],
)
def test_a_config_that_would_run_something_else(copy, key, target):
    edit(copy / "decoder", key, target)
    told = target if isinstance(target, str) else target["_target_"]
    refused(copy, told.replace(".", r"\."))


def test_damaged_weights(copy):
    path = copy / "prior" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    refused(copy, "prior/weights.safetensors: not a whole safetensors file")


@pytest.mark.parametrize("spoil", ["shape", "missing", "more"])
def test_weights_of_another_network(copy, spoil):
    path = copy / "prior" / "weights.safetensors"
    state = load_file(path)
    if spoil == "shape":
        state["out.bias"] = torch.zeros(7)
    elif spoil == "missing":
        del state["out.bias"]
    else:
        state["spare"] = torch.zeros(7)
    save_file(state, path)
    refused(copy, "weights and config.yaml disagree on 1 tensors, '(out.bias|spare)' among them")


def test_an_encoder_alone(system):
    assert network(system / "clip").image_size == (32, 32)
