"""What a person gets wrong, and what a machine does: one message with the value and the way out, no traceback."""

import errno
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from fixtures.programs import environment
from fixtures.shards import sample, write_tar
from fixtures.system import config, overrides
from hydra.errors import InstantiationException
from safetensors.torch import load_file

from open_kandinsky.config import compose
from open_kandinsky.core import failures
from open_kandinsky.loading import load
from open_kandinsky.train import train


def start(verb, arguments, folder):
    command = [sys.executable, "-m", "open_kandinsky.cli", verb, *arguments]
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are deaf to Ctrl-C
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=environment(), **pipes, text=True, preexec_fn=hears)


def typed(verb, arguments, folder):
    """Exit code, and what stood on stderr."""
    process = start(verb, arguments, folder)
    _, told = process.communicate(timeout=120)
    return process.returncode, told


@pytest.fixture
def spoiled(tmp_path):
    """Folders that are empty, truncated, or hold unreadable images."""
    (tmp_path / "empty").mkdir()
    cut = Path(write_tar(tmp_path / "cut" / "00000.tar", {f"{at:09d}": sample(at) for at in range(4)}))
    cut.write_bytes(cut.read_bytes()[:700])
    members = {f"{at:09d}": sample(at, **({"png": b"no picture"} if at % 2 else {})) for at in range(12)}
    write_tar(tmp_path / "bad" / "00000.tar", members)
    return tmp_path


OPTIONS = {
    "stage.optimzer.lr=1": "no such key 'stage.optimzer'; did you mean 'stage.optimizer'",
    "+stage.lr=1": "stage takes no 'lr'; nearest: 'stage.optimizer.lr'",
    "experiment=nope": "no such option 'experiment=nope'; there are: clip_toy",
}
SET = {
    "data.urls=nowhere": "no shard at 'nowhere'",
    "data.urls=empty": "no .tar file in the folder 'empty': it is empty; write shards with img2dataset",
    "data.urls=cut": "truncated or unreadable tar: 1 (00000)",
    "data.urls=bad": "unreadable image: 6 (00000/000000001",
    "trainer.devices=99": "lower trainer.devices",
    "stage.optimizer.lr=1e30": "nan",
}


@pytest.mark.parametrize("option", [pytest.param(o, marks=pytest.mark.slow) if i else o for i, o in enumerate(OPTIONS)])
def test_an_override_that_does_not_fit(tmp_path, option):
    code, told = typed("train", [*([] if "experiment" in option else ["experiment=prior_toy"]), option], tmp_path)
    assert code == 2 and OPTIONS[option] in told and told.count("\n") == 1, told
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_described_by_its_own_files_comment():
    """Of two keys that are called folder, and of two verbs' weights."""
    with pytest.raises(ValueError, match=r"preview.draw.movq.folder=  run folder of an autoencoder\n") as refusal:
        compose.checked("train", ["stage=decoder", "callbacks=preview_decoder"], compose.CONF, complete=True)
    assert "data.path=  a folder made by" in str(refusal.value)
    with pytest.raises(ValueError, match=r"clip.folder=  run folder of the CLIP that made the cache"):
        compose.checked("train", ["experiment=decoder_toy", "callbacks=frechet_decoder"], compose.CONF, complete=True)


def test_a_perceptual_loss_without_a_network_names_the_override_that_does_without(shapes, tmp_path, monkeypatch):
    def away(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", away)
    lpips = "stage.pixel_loss={l1: 1.0, l2: 0.0, edges: 0.0, lpips: 1.0, perceptual: {_target_: NETWORK}}"
    lpips = lpips.replace("NETWORK", "open_kandinsky.networks.perceptual.LPIPS")
    with pytest.raises(InstantiationException) as stop:
        train(config("movq", shapes, f"run_dir='{tmp_path}/run'", lpips))
    assert "stage.pixel_loss.lpips=0 stage.pixel_loss.perceptual=null" in failures.message(stop.value)


@pytest.mark.slow
@pytest.mark.parametrize("option", SET)
def test_through_the_command_line(spoiled, shapes, option):
    """Where training begins, the message follows the progress bar's line."""
    more = [] if "urls" in option else [f"data.urls='{shapes}/shapes/train'"]
    given = overrides("movq", shapes, "run_dir=run", "data.val_urls=null", "trainer.max_steps=50", *more, option)
    code, told = typed("train", given, spoiled)
    assert code == 2 and SET[option] in told and "Traceback" not in told, told
    assert not list(spoiled.rglob("*.part")) and not (spoiled / "run" / "weights.safetensors").exists()


@pytest.mark.slow
def test_ctrl_c_in_precompute_and_going_on(shapes, system, tmp_path):
    for copy in range(40):
        shutil.copy(shapes / "shapes" / "train" / "00000.tar", tmp_path / f"{copy:05d}.tar")
    given = [f"urls='{tmp_path}'", "out=out", f"clip='{system}/clip'", f"movq='{system}/movq'", "image_size=32"]
    process = start("precompute", given, tmp_path)
    wait_for((tmp_path / "out" / "00001.safetensors").exists)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in told
    assert told.strip().splitlines()[-1] == "open-kandinsky precompute: interrupted"
    done = list((tmp_path / "out").glob("*.safetensors"))
    left = [path.name for path in (tmp_path / "out").rglob(".*") if path.name != ".claims"]
    assert not (tmp_path / "out" / "manifest.json").exists() and left == []
    before = {path: path.stat().st_mtime_ns for path in done}
    assert typed("precompute", given, tmp_path)[0] == 0
    assert (tmp_path / "out" / "manifest.json").exists()
    assert before == {path: path.stat().st_mtime_ns for path in done}, "what was done was not done again"


def wait_for(there, seconds=60):
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)


def test_a_loss_that_is_none_leaves_the_last_checkpoint(cached, tmp_path):
    given = ["callbacks.checkpoint.every_n_train_steps=1", "trainer.gradient_clip_val=null", "data.val_path=null"]
    given += [f"run_dir='{tmp_path}/a'", "stage.optimizer.lr=1e30", "trainer.max_steps=50"]
    with pytest.raises(FloatingPointError) as stop:
        train(config("prior_linear", cached, *given))
    told = failures.message(stop.value)
    step = int(re.search(r"at step (\d+), in the batch of 8 samples 0000\d/0000\d+", told)[1])
    assert torch.load(tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step
    assert "stage.optimizer.lr" in told and not (tmp_path / "a" / "weights.safetensors").exists()


def test_a_disk_that_is_full_at_a_checkpoint(cached, tmp_path, monkeypatch):
    """The real error of a full device; the checkpoint before it is whole."""
    saves, save = [], torch.save

    def full(checkpoint, file):
        saves.append(file)
        if len(saves) < 3:  # step 1's two names
            return save(checkpoint, file)
        with open("/dev/full", "wb", buffering=0) as device:
            save(checkpoint, device)

    monkeypatch.setattr("open_kandinsky.training.checkpointing.torch.save", full)
    every = ["callbacks.checkpoint.every_n_train_steps=1", "data.val_path=null", f"run_dir='{tmp_path}/a'"]
    with pytest.raises(OSError) as stop:
        train(config("prior_linear", cached, *every))
    assert stop.value.errno == errno.ENOSPC
    told = failures.message(stop.value)
    assert told == f"{tmp_path}/a/checkpoints/step=00000002.ckpt: No space left on device; nothing was overwritten"
    kept = tmp_path / "a" / "checkpoints"
    assert {path.name for path in kept.iterdir()} == {"step=00000001.ckpt", "last.ckpt"}
    assert torch.load(kept / "last.ckpt", weights_only=True)["global_step"] == 1


@contextmanager
def small_files():
    """No file may pass 4 kB: a write then fails as on a full disk, but for the error's number.

    For the write alone: pytest's own report may be going to a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_weights_that_cannot_be_written(tmp_path):
    from open_kandinsky.weights import store

    path = tmp_path / store.WEIGHTS
    store.write(path, {"a": torch.ones(3)})
    with small_files(), pytest.raises(OSError) as stop:
        store.write(path, {"a": torch.zeros(10_000)})
    assert failures.message(stop.value).startswith(f"{path}: ")
    assert [p.name for p in tmp_path.iterdir()] == [store.WEIGHTS] and load_file(path)["a"].tolist() == [1, 1, 1]


def test_a_shard_of_a_cache_that_cannot_be_written(tmp_path):
    from open_kandinsky.data.cache.rows import CacheRows
    from open_kandinsky.data.cache.shard import write_shard

    with small_files(), pytest.raises(OSError) as stop:
        write_shard(tmp_path / "0.safetensors", CacheRows({"a": torch.zeros(1, 10_000)}, ["c"], ["k"]), {})
    assert failures.message(stop.value).startswith(f"{tmp_path}/0.safetensors: ")
    assert list(tmp_path.iterdir()) == []


def test_a_caption_that_is_too_long_is_cut_and_warned_of(system):
    clip = load(system).clip
    with pytest.warns(UserWarning, match="longer than 14 tokens, its end is not read.*: 'red red"):
        long = clip.encode_text(["red " * 60])
    assert long.mask.all() and long.emb.isfinite().all()


WORDS = {
    "DataLoader worker (pid(s) 31) exited unexpectedly": "a data worker (process 31) died, unexpectedly; where the",
    "DataLoader worker (pid 31) is killed by signal: Killed. ": "a data worker (process 31) died, killed by signal: K",
    "[gloo/tcp/pair.cc:547] Connection closed by peer [::1]:1": "another process of this run is gone: what it said",
}


@pytest.mark.parametrize("words", WORDS)
def test_a_process_that_died_is_told_of_in_one_message(words):
    """As torch words it; the tests of streams and of several processes kill real ones."""
    assert failures.message(RuntimeError(words)).startswith(WORDS[words])
