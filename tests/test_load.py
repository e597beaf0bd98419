"""From folders to a system: what is written comes back, and what does not fit together is refused by name."""

import os
import shutil
import sys
from dataclasses import asdict

import pytest
import torch
from fixtures.system import PARTS, untrained
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from open_kandinsky.core.failures import message
from open_kandinsky.loading import fingerprints, load, trained
from open_kandinsky.pipeline import execution
from open_kandinsky.pipeline.execution import ModelOffload, part_devices, with_transfers
from open_kandinsky.weights.build import parameters_on_meta


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
    told = OmegaConf.load(system / "prior" / "config.yaml").sampling
    assert asdict(pipe.prior.sampling) == told and pipe.decoder.sampling.steps == 3 and pipe.size == 32


def test_in_half_precision_the_schedule_stays_in_double(system):
    pipe = load(system, dtype=torch.bfloat16)
    assert {p.dtype for p in pipe.decoder.network.parameters()} == {torch.bfloat16}
    assert pipe.decoder.alpha_bar.dtype == torch.float64


def test_parts_from_several_folders(system, tmp_path):
    other = untrained("prior_linear", tmp_path)
    pipe = load({"rest": system, "prior": other})
    assert type(pipe.prior.network).__name__ == "LinearPrior"
    assert asdict(pipe.prior.sampling) == OmegaConf.load(other / "config.yaml").sampling
    refused({"rest": system, "priro": other}, "no part is called 'priro'; the parts are clip, movq, prior, decoder")


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
    assert trained(system / "clip").image_size == (32, 32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(copy, bad):
    path = copy / "prior" / "weights.safetensors"
    state = load_file(path)
    state["readout"][3] = bad
    save_file(state, path)
    refused(copy, "prior: 'readout' holds what is no number .* damaged")


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    refused(tmp_path, "the clip is looked for in .*clip, .*or original 2.1 files.*; found: no such folder")


def test_a_hub_id_without_a_network(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    refused("kandinsky-community/kandinsky-2-2", r"no such folder, and the Hugging Face hub .* \(ConnectionError\)")


def test_a_hub_id_is_fetched(system, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(system))
    assert load("kandinsky-community/kandinsky-2-2").size == 32


def test_a_machine_without_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("kandinsky-community/kandinsky-2-2", "pip install huggingface_hub")


def test_parameters_take_no_memory_until_they_are_read():
    with parameters_on_meta():
        made = torch.nn.BatchNorm2d(4)
    assert made.weight.is_meta and not made.running_mean.is_meta
    assert not torch.nn.Linear(1, 1).weight.is_meta


def test_a_device_for_each_part(system):
    """Results come home: `meta` stands for a second device."""
    network = with_transfers(torch.nn.Linear(2, 2), "meta")
    assert network(torch.ones(1, 2)).is_meta
    assert part_devices({"rest": "cuda", "decoder": "cuda:1"}) == {
        **dict.fromkeys(("clip", "movq", "prior", "text"), "cuda"),
        "decoder": "cuda:1",
    }
    with pytest.raises(ValueError, match="no part is called 'unet'"):
        part_devices({"unet": "cuda"})
    mapped = load(system, device={"rest": "cpu", "prior": "cpu:0"})
    one = load(system)
    assert mapped.text_to_embedding(["a"], steps=2).equal(one.text_to_embedding(["a"], steps=2))


@pytest.mark.slow
def test_parts_take_turns_on_a_device(system, monkeypatch):
    """`meta`, which keeps no values, stands for it: what comes back from it unharmed was never brought back."""
    turns, a, b = ModelOffload("meta"), torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)
    state = {name: x.clone() for name, x in a.state_dict().items()}
    for network in (a, b):
        turns.add(network)
    with torch.inference_mode():
        assert a(torch.ones(2, 2)).is_meta and a.weight.is_meta and not b.weight.is_meta
        assert b(torch.ones(2, 2)).is_meta and b.running_mean.is_meta
    assert all(x.equal(state[name]) for name, x in a.state_dict().items())
    with pytest.raises(ValueError, match="the parts take turns on one device"):
        load(system, device={"prior": "cpu"}, offload=True)
    monkeypatch.setattr(execution, "packed", lambda network: network)  # packed weights round otherwise
    turning, plain = (load(system, offload=offload).text_to_image(["a"], steps=2) for offload in (True, False))
    assert turning[0].tobytes() == plain[0].tobytes()


def test_fingerprints_tell_systems_apart(system, copy):
    assert fingerprints(system) == fingerprints(copy)
    edited = copy / "prior" / "weights.safetensors"
    state = load_file(edited)
    state["readout"] += 1
    save_file(state, edited)
    differs = {part for part, sum in fingerprints(system).items() if fingerprints(copy)[part] != sum}
    assert differs == {"prior"}


# Other people's files, of which a few end in the middle or bring code.


class Code:
    def __reduce__(self):
        return os.system, ("touch ran",)


def spoilt(path, how):
    torch.save({"state_dict": {"a": torch.ones(3000)}}, path)
    whole = path.read_bytes()
    if how == "cut short":
        path.write_bytes(whole[:-3000])
    elif how == "code":
        torch.save({"a": Code()}, path)
    elif how == "a pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif how == "no names":
        torch.save([torch.ones(3)], path)
    elif how == "another network":
        torch.save({"a.weight": torch.ones(3)}, path)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("cut short", "cut short, or no checkpoint; fetch it again"),
        ("code", "refused, since opening it would run code"),
        ("a pointer", "no whole checkpoint"),
        ("no names", "no state dict, which is names and their tensors; found: list"),
        ("another network", "not the prior of Kandinsky 2.1.*begins with a.weight"),
    ],
)
def test_a_checkpoint_that_is_spoilt(system, tmp_path, monkeypatch, how, told):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "prior_fp16.ckpt"
    spoilt(path, how)
    refused({"rest": system, "prior": tmp_path}, f"prior_fp16.ckpt: {told}")
    assert not (tmp_path / "ran").exists()
