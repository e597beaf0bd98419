"""debug=NAME: a tiny training of each, with what it is for."""

import csv

import pytest
import torch
from fixtures.system import config
from lightning import Callback

from open_kandinsky import train as verb
from open_kandinsky.config import compose
from open_kandinsky.train import train


@pytest.fixture
def debugged(cached, shapes, tmp_path):
    def debugged(part, *more):
        root = shapes if part in ("movq", "clip") else cached
        cfg = config(part, root, *more, f"run_dir='{tmp_path}/run'")
        return cfg, tmp_path / "run"

    return debugged


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("part", ["clip", "movq", "prior", "decoder"])
def test_one_step_of_everything(debugged, part):
    cfg, folder = debugged(part, "debug=default", "trainer.max_steps=1")
    assert (cfg.data.workers, cfg.trainer.limit_val_batches) == (0, 1)
    train(cfg)
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1
    assert (folder / "weights.safetensors").is_file()
    assert any(name.startswith("val/") and value for row in rows(folder) for name, value in row.items())


class Keys(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, stage, outputs, batch, batch_idx):
        self.seen.append(tuple(batch["key"]))


@pytest.mark.parametrize(("part", "count"), [("prior", 1), ("movq", 2)])
def test_the_same_batches_again_and_again(debugged, monkeypatch, part, count):
    keys = Keys()
    monkeypatch.setattr(verb, "make_trainer", with_callback(verb.make_trainer, keys))
    cfg, _ = debugged(part, "debug=overfit", f"callbacks.overfit_batches.count={count}", "trainer.max_steps=6")
    train(cfg)
    assert len(keys.seen) == 6
    assert keys.seen == keys.seen[:count] * (6 // count) and len(set(keys.seen)) == count


def with_callback(make_trainer, callback):
    """The trainer with one callback more, after all others."""
    return lambda cfg, callbacks, logger: make_trainer(cfg, [*callbacks, callback], logger)


def test_a_table_of_what_takes_how_long(debugged):
    cfg, folder = debugged("prior", "debug=profiler", "trainer.max_steps=2")
    train(cfg)
    table = (folder / "fit-profile.txt").read_text()
    assert "run_training_batch" in table and "Mean duration (s)" in table


def test_how_long_is_what_the_file_says():
    typed = ["experiment=prior_toy", "run_dir=run"]
    assert compose.compose("train", [*typed, "debug=default"]).trainer.max_steps == 1
    assert compose.compose("train", [*typed, "debug=profiler"]).trainer.max_steps == 50
    assert compose.compose("train", [*typed, "debug=overfit"]).trainer.max_steps == 300, "the experiment's own"
