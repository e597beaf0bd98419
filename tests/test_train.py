"""The verb train: what a run leaves, what it refuses, and that a run that was killed ends as one that was not."""

import csv
import math

import pytest
import torch
from fixtures.system import config
from lightning import Callback
from safetensors.torch import load_file

from open_kandinsky import train as verb
from open_kandinsky.core.failures import message
from open_kandinsky.train import train
from open_kandinsky.training.checkpointing import WholeCheckpoints

ROOTS = {"clip": "shapes", "movq": "shapes", "prior": "cached", "prior_linear": "cached", "decoder": "cached"}
LEFT = {"config.yaml", "weights.safetensors"}
LATE = {"movq": ["stage.quantise_from=3", "stage.adversary_from=5"]}


@pytest.fixture
def run(request, tmp_path):
    """Trains a part for some steps into a folder of this test."""

    def run(part, steps, folder, *more):
        root = request.getfixturevalue(ROOTS[part])
        none = "data.val_urls=null" if ROOTS[part] == "shapes" else "data.val_path=null"
        length = [f"trainer.max_steps={steps}", f"run_dir='{tmp_path / folder}'", "trainer.log_every_n_steps=1"]
        return train(config(part, root, *length, none, *LATE.get(part, []), *more))

    return run


def state(folder, name="checkpoints/last.ckpt"):
    return torch.load(folder / name, weights_only=True)


def curve(folder):
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [(int(row["step"]), row["train/loss"]) for row in rows if row["train/loss"]]


@pytest.fixture
def seen(monkeypatch):
    """The keys of every batch, in order."""
    keys = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, stage, batch, at):
            keys.append(tuple(batch["key"]))

    trainer = verb.Trainer
    original = trainer.__init__
    monkeypatch.setattr(
        trainer, "__init__", lambda self, *a, callbacks, **k: original(self, *a, callbacks=[*callbacks, Watch()], **k)
    )
    return keys


def test_what_a_run_leaves(run):
    folder = run("prior", 4, "a")
    assert {p.name for p in folder.iterdir()} == LEFT | {"metrics.csv", "checkpoints"}
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"last.ckpt"}
    kept, weights = state(folder), load_file(folder / "weights.safetensors")
    average = kept["callbacks"]["EMA"]["average"]
    assert kept["global_step"] == 4 and len(average) == len(weights) - 2, "all but the two statistics"
    for name, value in average.items():
        assert torch.equal(weights[name], value), name
    assert not torch.equal(weights["out.weight"], kept["state_dict"]["network.out.weight"])
    assert [step for step, _ in curve(folder)] == [0, 1, 2, 3]


def test_a_run_is_not_overwritten(run):
    folder = run("prior_linear", 2, "a")
    before = (folder / "weights.safetensors").read_bytes()
    with pytest.raises(ValueError, match="a is a run already, and none is .*: go on .* resume=auto, or choose another"):
        run("prior_linear", 2, "a")
    assert (folder / "weights.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "part", ["prior", *(pytest.param(part, marks=pytest.mark.slow) for part in ("clip", "movq", "decoder"))]
)
def test_killed_and_resumed_is_uninterrupted(run, seen, part):
    """To the bit: weights, their average, optimiser, the curve, and the samples of each step."""
    whole = run(part, 8, "whole", "stage.lr_schedule.warmup=2")
    every, seen[:] = list(seen), []
    half = run(part, 4, "half", "stage.lr_schedule.warmup=2", *steady(part, 8))
    resume = f"resume='{half}/checkpoints/last.ckpt'"
    run(part, 8, "half", "stage.lr_schedule.warmup=2", resume)
    assert seen == every
    assert curve(half) == curve(whole) and len(curve(whole)) == 8
    one, other = load_file(whole / "weights.safetensors"), load_file(half / "weights.safetensors")
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    torch.testing.assert_close(state(half)["callbacks"]["EMA"], state(whole)["callbacks"]["EMA"], rtol=0, atol=0)
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        torch.testing.assert_close(state(half)[name], state(whole)[name], rtol=0, atol=0)


def steady(part, steps):
    """The schedule of the whole run, for the half that is cut."""
    return [f"stage.lr_schedule.steps={steps}"]


@pytest.mark.slow
def test_a_run_killed_between_checkpoints_repeats_its_curve_once(run):
    """Gone on from step 4 of a run that came to 6: rows of what is done again are not there twice."""
    whole = run("prior", 8, "whole", "callbacks.checkpoint.every_n_train_steps=4")
    folder = run("prior", 6, "a", "callbacks.checkpoint.every_n_train_steps=4", *steady("prior", 8))
    assert state(folder)["global_step"] == 6 and len(curve(folder)) == 6
    run("prior", 8, "a", f"resume='{folder}/checkpoints/step=00000004.ckpt'")
    assert curve(folder) == curve(whole)


def test_a_run_killed_after_its_last_step_ends_when_it_goes_on(run, monkeypatch):
    """Its last checkpoint is written, and neither that step's row nor what a run leaves at its end."""
    whole = run("prior", 4, "whole", "callbacks.checkpoint.every_n_train_steps=4")
    save = WholeCheckpoints.save_checkpoint

    def saved_and_killed(*given, **more):
        save(*given, **more)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(WholeCheckpoints, "save_checkpoint", saved_and_killed)
        run("prior", 4, "a", "callbacks.checkpoint.every_n_train_steps=4")
    folder = whole.parent / "a"
    assert len(curve(folder)) == 3 and not (folder / "weights.safetensors").exists()
    run("prior", 4, "a", f"resume='{folder}/checkpoints/step=00000004.ckpt'")
    assert curve(folder) == curve(whole) and (folder / "weights.safetensors").exists()


@pytest.mark.slow
def test_the_newest_checkpoints_stay_and_go_on_being_the_newest(run):
    few = ["callbacks.checkpoint.every_n_train_steps=1", "callbacks.checkpoint.save_top_k=2"]
    folder = run("prior_linear", 4, "a", *few, *steady("prior_linear", 7))
    assert {p.stem for p in (folder / "checkpoints").iterdir()} == {"step=00000003", "step=00000004", "last"}
    run("prior_linear", 7, "a", *few, f"resume='{folder}/checkpoints/last.ckpt'")
    assert {p.stem for p in (folder / "checkpoints").iterdir()} == {"step=00000006", "step=00000007", "last"}


class Killed(BaseException):
    """Nothing that mends errors catches it."""


def test_validation_moves_nothing(run, cached):
    """It draws noise of its own, the same each time."""
    without = run("prior", 4, "a")
    path = f"data.val_path='{cached}/cache/seen'"
    folder = run("prior", 4, "b", path, "trainer.val_check_interval=1", "stage.optimizer.lr=0.0")
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert len({row["val/cosine_prior"] for row in rows if row["val/cosine_prior"]}) == 1
    assert curve(run("prior", 4, "c", path, "trainer.val_check_interval=1")) == curve(without)


def test_no_prior_has_nothing_to_train(cached, tmp_path):
    folder = train(config("prior_none", cached, f"run_dir='{tmp_path}/none'"))
    assert {p.name for p in folder.iterdir()} == LEFT


REFUSED = {
    "trainer.devices=99": "trainer.devices=99 .*this machine has .*lower trainer.devices",
    "trainer.devices=2": "trainer.devices=2 with strategy=single: choose strategy=ddp",
    "trainer.max_steps=-1": "trainer.max_steps=-1: say how long",
    "resume=nowhere/last.ckpt": "resume=nowhere/last.ckpt is no checkpoint",
}


@pytest.mark.parametrize("typed", REFUSED)
def test_what_cannot_be_is_refused_before_a_folder_is_made(cached, tmp_path, typed):
    with pytest.raises(ValueError, match=REFUSED[typed]) as refusal:
        train(config("prior", cached, f"run_dir='{tmp_path}/a'", typed))
    assert message(refusal.value)
    assert not (tmp_path / "a").exists()


def test_a_checkpoint_that_is_none_is_refused_and_the_curve_stays(run):
    folder = run("prior", 2, "a")
    before = curve(folder)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"half of one")
    with pytest.raises(ValueError, match="last.ckpt: cut short, or no checkpoint; there is no other one") as refusal:
        run("prior", 4, "a", f"resume='{folder}/checkpoints/last.ckpt'", *steady("prior", 2))
    assert message(refusal.value) and curve(folder) == before


@pytest.mark.slow
def test_a_hole_in_the_last_checkpoint_costs_the_steps_since_the_one_before(run):
    """`resume=auto` takes the one before, which any other resume names."""
    each = ["callbacks.checkpoint.every_n_train_steps=2", *steady("prior", 4)]
    whole, broken = run("prior", 4, "whole", *each), run("prior", 4, "broken", *each)
    last = broken / "checkpoints" / "last.ckpt"
    (before,) = [
        path for path in last.parent.glob("step*.ckpt") if state(broken, f"checkpoints/{path.name}")["global_step"] == 2
    ]
    for path in {last, *last.parent.glob("*4.ckpt")}:
        with open(path, "r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(bytes(4096))
    with pytest.raises(ValueError, match=f"last.ckpt: damaged, at .*; the newest other one that is whole: .*{before}"):
        run("prior", 4, "broken", f"resume='{last}'", *each)
    with pytest.warns(UserWarning, match="last.ckpt is passed over: damaged, at "):
        run("prior", 4, "broken", "resume=auto", *each)
    assert torch.equal(
        load_file(broken / "weights.safetensors")["out.weight"], load_file(whole / "weights.safetensors")["out.weight"]
    )


def test_a_run_shows_our_lines_alone(run, capfd, recwarn):
    run("prior", 2, "a")
    assert capfd.readouterr().err == ""
    assert [str(w.message) for w in recwarn if "lightning" in w.filename] == []


def test_at_its_bound_a_temperature_is_saved_averaged_and_resumed_as_it_is(run):
    """Pushed past ln 100 by a loss that is made large, and clamped before a checkpoint or an average sees it."""
    bound, pushed = math.log(100), ["callbacks.checkpoint.every_n_train_steps=1", "stage.optimizer.lr=1.0"]
    pushed += ["stage.lr_schedule.warmup=1", "callbacks.ema.decay=0.5", "+stage.optimizer.maximize=true"]
    pushed += ["stage.lr_schedule.steps=4"]
    whole = run("clip", 4, "whole", *pushed)
    for path in sorted((whole / "checkpoints").glob("step*.ckpt")):
        saved = torch.load(path, weights_only=True)
        average = saved["callbacks"]["EMA"]["average"]["model.logit_scale"]
        assert saved["state_dict"]["network.model.logit_scale"] <= bound and average <= bound
    assert float(saved["state_dict"]["network.model.logit_scale"]) == pytest.approx(bound)
    run("clip", 2, "cut", *pushed)
    run("clip", 4, "cut", *pushed, "resume=auto")
    assert curve(whole) == curve(whole.parent / "cut")
    one, other = (state(folder)["state_dict"] for folder in (whole, whole.parent / "cut"))
    assert all(torch.equal(x, other[name]) for name, x in one.items())
