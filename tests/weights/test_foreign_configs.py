"""A config that comes with weights builds networks and nothing else, however it was changed, and in bounded time."""

import copy
import os
import shutil
import sys
import time

import pytest
import torch
import yaml
from fixtures.system import PARTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from open_kandinsky import loading
from open_kandinsky.core.failures import message
from open_kandinsky.generate import generate
from open_kandinsky.loading import load
from open_kandinsky.weights import native

BOUNDED = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
EVENTS = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.fork", "socket.connect", "shutil.rmtree"}
happened: list[str] = []
sys.addaudithook(lambda event, arguments: happened.append(event) if event in EVENTS else None)


@pytest.fixture
def folder(system, tmp_path):
    return shutil.copytree(system, tmp_path / "weights")


def change(folder, part, edit):
    path = folder / part / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    edit(tree)
    path.write_text(yaml.safe_dump(tree))


def refused(call, told=None):
    before, start = len(happened), time.perf_counter()
    with pytest.raises(ValueError, match=told) as refusal:
        call()
    assert message(refusal.value), "not told in one message"
    assert happened[before:] == [] and time.perf_counter() - start < 20


def opened(folder, part):
    """One part as `load` opens it, without the others."""
    found = loading.part(part, folder)
    network = loading.network(found)
    return loading.diffusion(found, part, network, "cpu") if part in ("prior", "decoder") else network


def hostile(touched):
    """Nodes that whole packages' names let through: each would have made `touched`, or sent something."""
    command = f"pipe:touch {touched}"
    return {
        "a class that opens a pipe": {"_target_": "open_kandinsky.data.tar.opening.Command", "url": command},
        "a function that does": {"_target_": "open_kandinsky.data.tar.opening.open_url", "url": command},
        "a function that counts": {"_target_": "open_kandinsky.data.tar.reader.count", "url": command},
        "torch's": {"_target_": "torch.hub.load", "repo_or_dir": "x/y", "model": "z"},
        "another's": {"_target_": "os.system", "command": f"touch {touched}"},
        "in a list": [{"_target_": "open_kandinsky.data.tar.opening.Command", "url": command}],
        "interpolated": {"_target_": "${oc.select:zz.yy,torch.nn.Identity}", "url": command},
        "a partial": {"_target_": "open_kandinsky.networks.unet.UNet", "_partial_": True},
        "of this package, and no network": {"_target_": "open_kandinsky.callbacks.ema.EMA", "decay": 0.9},
        "a network that fetches weights": {"_target_": "open_kandinsky.networks.perceptual.LPIPS"},
        "a loader": {"_target_": "open_kandinsky.loading.trained", "folder": "x"},
    }


PLACES = {
    "the network": lambda tree, node: tree["stage"].update(network=node),
    "its condition": lambda tree, node: tree["stage"]["network"].update(condition=node),
    "an argument": lambda tree, node: tree["stage"]["network"].update(multipliers=node),
    "one more argument": lambda tree, node: tree["stage"]["network"].update(more=node),
    "the schedule": lambda tree, node: tree["stage"].update(alpha_bar=node),
    "the parameterisation": lambda tree, node: tree["stage"].update(parameterisation=node),
    "its mean": lambda tree, node: tree["stage"]["parameterisation"].update(mean=node),
    "the sampling": lambda tree, node: tree["sampling"].update(steps=node),
    "the size": lambda tree, node: tree["dims"].update(image_size=node),
}


@pytest.mark.parametrize("kind", hostile(""))
@pytest.mark.parametrize(
    "place", [pytest.param(p, marks=[] if p in ("the network", "its mean") else pytest.mark.slow) for p in PLACES]
)
def test_nothing_is_called_that_a_config_names(folder, tmp_path, kind, place):
    touched = tmp_path / "touched"
    change(folder, "decoder", lambda tree: PLACES[place](tree, hostile(touched)[kind]))
    refused(lambda: opened(folder, "decoder") and loading.image_size(loading.part("decoder", folder)))
    assert not touched.exists()


def test_the_command_refuses_it_too(folder, tmp_path):
    from open_kandinsky.config import compose

    touched = tmp_path / "touched"
    change(folder, "decoder", lambda tree: PLACES["the network"](tree, hostile(touched)["a class that opens a pipe"]))
    cfg = compose.compose("generate", [f"weights='{folder}'", f"out='{tmp_path}/out'", "prompts=[a]"])
    refused(lambda: generate(cfg), "refused to build 'open_kandinsky.data.tar.opening.Command'")
    assert not touched.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${oc.select:dims.clip,1}", "a ${zz.yy} b"])
def test_a_reference_anywhere_is_refused(folder, text):
    change(folder, "prior", lambda tree: tree.update(notes={"of": [{"me": text}]}))
    refused(lambda: opened(folder, "prior"), "is a reference, which a finished run's config has none of")


def test_a_converted_system_holds_nothing_of_the_environment(folder, tmp_path, monkeypatch):
    from open_kandinsky.config import compose
    from open_kandinsky.convert import convert

    monkeypatch.setenv("TOKEN_OF_MINE", "hunter2")
    change(folder, "prior", lambda tree: tree.update(notes="${oc.env:TOKEN_OF_MINE}"))
    cfg = compose.compose("convert", [f"from='{folder}'", f"to='{tmp_path}/out'"])
    refused(lambda: convert(cfg), "is a reference")
    assert not (tmp_path / "out").exists()


BOMBS = {
    "aliases": "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\ndims: {image_size: 32}\nstage: {network: {_target_: x}}\n",
    "depth": "dims: " + "[" * 50_000 + "\n",
    "size": "dims: {image_size: 32}\nstage: {network: {_target_: x}}\nnotes: " + "x" * (1 << 20) + "\n",
    "a number of many digits": "dims: {image_size: " + "9" * 5_000 + "}\nstage: {network: {_target_: x}}\n",
    "an object": "dims: !!python/object/apply:os.system ['true']\nstage: {network: {_target_: x}}\n",
    "a tag": "dims: !!python/name:os.system\nstage: {network: {_target_: x}}\n",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_file_that_means_more_than_it_says_is_not_read(folder, bomb):
    (folder / "prior" / "config.yaml").write_text(BOMBS[bomb])
    refused(lambda: opened(folder, "prior"), "prior/config.yaml: ")


SIZES = {
    ("prior", "layers"): 1_000_000,
    ("prior", "width"): 2**30,
    ("prior", "text_length"): 10**11,
    ("decoder", "channels"): 2**26,
    ("decoder", "blocks"): 1_000_000,
    ("decoder", "multipliers"): [1] * 5_000,
    ("movq", "codes"): 10**11,
    ("movq", "blocks"): 1_000_000,
}


@pytest.mark.parametrize(("part", "size"), SIZES)
def test_a_network_larger_than_its_weights_is_not_built(folder, part, size):
    change(folder, part, lambda tree: tree["stage"]["network"].update({size: SIZES[part, size]}))
    refused(lambda: opened(folder, part), "its config (asks for a network larger than its weights|does not make a)")


@pytest.mark.slow
def test_a_clip_of_any_size_is_held_to_its_weights(folder):
    for tower, size in (("vision", "layers"), ("text", "layers"), ("text", "context_length"), ("vision", "width")):
        change(folder, "clip", lambda tree: tree["stage"]["network"][tower].update({size: 2**24}))  # noqa: B023
        refused(
            lambda: opened(folder, "clip"), "its config (asks for a network larger than its weights|does not make a)"
        )


@pytest.mark.parametrize(("key", "value"), [("timm_model_name", "hf-hub:x/y"), ("timm_model_pretrained", True)])
def test_a_clip_fetches_no_other_network(folder, key, value):
    change(folder, "clip", lambda tree: tree["stage"]["network"]["vision"].update({key: value}))
    refused(lambda: opened(folder, "clip"), f"vision.{key} is none of")


@pytest.mark.parametrize("T", [0, -1, 10**9, "many", 2.5])
def test_a_schedule_has_a_bounded_number_of_timesteps(folder, T):
    change(folder, "decoder", lambda tree: tree["stage"]["alpha_bar"].update(T=T))
    refused(lambda: opened(folder, "decoder"), "a schedule has 1 to 100,000 timesteps")


@pytest.mark.parametrize("given", [{"steps": 0}, {"scale": float("nan")}, {"sampler": "x"}, {"more": 1}, {"steps": []}])
def test_a_sampling_that_cannot_be(folder, given):
    change(folder, "prior", lambda tree: tree["sampling"].update(given))
    refused(lambda: opened(folder, "prior"), "sampling")


def test_a_tokenizer_lies_in_the_folder(tmp_path):
    config = {"stage": {"network": {"tokenizer": "../../etc"}}}
    refused(lambda: native.with_tokenizer(tmp_path, config), "outside of the folder")


# ---- changed at random


def paths(tree, path=()):
    """Of every value below a tree."""
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from paths(tree[key], (*path, key))


TARGETS = st.sampled_from(
    [
        *("os.system", "builtins.eval", "torch.load", "torch.hub.load", "subprocess.run", "pty.spawn", "x", "", "."),
        *("open_kandinsky.data.tar.opening.Command", "open_kandinsky.networks.movq.MoVQ", "torch.nn.Linear"),
        *("open_kandinsky.networks.unet.os.system", "open_kandinsky.diffusion.schedule.linear", "webdataset.gopen"),
    ]
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    TARGETS,
    st.sampled_from(["${oc.env:HOME}", "pipe:true", "../../x", "1e400", "~"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["_target_", "_partial_", "_args_", "url", "T", "mean"]), inner, max_size=3),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def trees(system):
    return {part: yaml.safe_load((system / part / "config.yaml").read_text()) for part in PARTS}


@pytest.mark.slow
@BOUNDED
@given(data=st.data())
def test_a_config_that_was_changed_anywhere_loads_or_is_refused_in_words(system, trees, tmp_path, data):
    """Where it loads, the network is the one that its weights are of: the part that was changed has no say in it."""
    part = data.draw(st.sampled_from(PARTS))
    tree = copy.deepcopy(trees[part])
    root = {key: tree[key] for key in ("stage", "dims", "sampling")}
    path = data.draw(st.sampled_from([p for p in paths(root) if p[:2] != ("stage", "optimizer")]))
    inner = root
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = data.draw(VALUES)
    folder = tmp_path / part
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree | root))
    if not (folder / "weights.safetensors").exists():
        os.link(system / part / "weights.safetensors", folder / "weights.safetensors")
    before, start = len(happened), time.perf_counter()
    try:
        pipe = load({"rest": system, part: folder})
    except (ValueError, TypeError) as refusal:
        assert message(refusal), f"{path}: a traceback, {refusal!r}"
    else:
        made = {"clip": pipe.clip, "movq": pipe.movq, "prior": pipe.prior.network, "decoder": pipe.decoder.network}
        own = loading.trained(system / part).state_dict()
        assert all(torch.equal(value.to_dense(), own[name]) for name, value in made[part].state_dict().items())
    assert happened[before:] == [] and time.perf_counter() - start < 10
