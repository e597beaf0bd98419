"""Previews show the averaged weights on samples that stay, and a run with them is the same run."""

import csv

import pytest
import torch
from fixtures.system import config
from lightning import Callback
from PIL import Image

from open_kandinsky import train as verb
from open_kandinsky.callbacks.preview import Drawings, Preview, Reconstructions
from open_kandinsky.train import train
from open_kandinsky.weights import store

STEPS = ["trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "callbacks.ema.decay=0.5"]
MOVQ = ["callbacks=preview_movq", "callbacks.preview.every=2", "callbacks.preview.count=3"]


def decoder(movq):
    folder = f"callbacks.preview.draw.movq.folder='{movq}'"
    return ["callbacks=preview_decoder", folder, *MOVQ[1:], "callbacks.preview.draw.steps=2"]


@pytest.fixture
def run(cached, system, tmp_path):
    """Four steps of a part, validated after two and after four."""
    previews = {"movq": MOVQ, "decoder": decoder(system / "movq")}

    def run(part, folder, *more, preview=True):
        shown = previews[part] if preview else []
        return train(config(part, cached, f"run_dir='{tmp_path / folder}'", *STEPS, *shown, *more))

    return run


@pytest.mark.parametrize("part", [pytest.param("movq", marks=pytest.mark.slow), "decoder"])
def test_a_run_with_previews_is_the_same_run(run, part):
    watched, alone = run(part, "watched"), run(part, "alone", preview=False)
    assert (watched / "previews" / "00000004.png").is_file() and not (alone / "previews").exists()
    assert figures(watched) == figures(alone)
    state, same = (store.read(folder / store.WEIGHTS) for folder in (watched, alone))
    assert all(torch.equal(state[name], same[name]) for name in same)


def figures(folder):
    """All but those of the clock."""
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    clock = ("speed/", "data/")
    return [{name: value for name, value in row.items() if not name.startswith(clock)} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["movq", pytest.param("decoder", marks=pytest.mark.slow)])
def test_no_random_number_is_taken(run, part, monkeypatch):
    """With RandomNumbers, which seeds each batch anew, gone: what the preview draws would be missed in training."""
    gone = ["~callbacks.random_numbers"]
    assert losses(run(part, "watched", *gone)) == losses(run(part, "alone", *gone, preview=False))


def losses(folder):
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    return [row["train/loss"] for row in rows if row["train/loss"]]


@pytest.mark.parametrize(("part", "side"), {"movq": 32, "decoder": 32}.items())
def test_a_grid_of_two_rows_and_its_captions(run, part, side):
    folder = run(part, "run") / "previews"
    assert sorted(path.name for path in folder.iterdir()) == ["00000002.png", "00000004.png", "captions.txt"]
    assert Image.open(folder / "00000004.png").size == (3 * (side + 2) + 2, 2 * (side + 2) + 2)
    assert len((folder / "captions.txt").read_text().splitlines()) == 3


def test_without_an_autoencoder_latents_are_shown(run):
    folder = run("decoder", "run", "callbacks.preview.draw.movq=null") / "previews"
    assert Image.open(folder / "00000004.png").size == (3 * 10 + 2, 2 * 10 + 2)


@pytest.mark.slow
def test_the_averaged_weights_draw(run, monkeypatch):
    """What the network is at the preview is what the run exports, not what training goes on with."""
    drawn, trained = {}, {}

    def draw(self, stage, batch):
        drawn.update({name: value.clone() for name, value in stage.network.state_dict().items()})
        return batch["pixels"][None]

    class Watch(Callback):
        def on_train_end(self, trainer, stage):
            trained.update({name: value.clone() for name, value in stage.network.state_dict().items()})

    monkeypatch.setattr(Reconstructions, "__call__", draw)
    init = verb.Trainer.__init__
    monkeypatch.setattr(
        verb.Trainer, "__init__", lambda self, *a, callbacks, **k: init(self, *a, callbacks=[*callbacks, Watch()], **k)
    )
    exported = store.read(run("movq", "run") / store.WEIGHTS)
    assert all(torch.equal(drawn[name], exported[name]) for name in exported)
    assert not torch.equal(drawn["encoder.conv_in.weight"], trained["encoder.conv_in.weight"])


@pytest.mark.slow
def test_it_is_drawn_once_in_every_so_many_steps(run):
    folder = run("movq", "run", "callbacks.preview.every=4") / "previews"
    assert {path.name for path in folder.glob("*.png")} == {"00000002.png", "00000004.png"}  # the first, and at 4
    folder = run("movq", "rarely", "callbacks.preview.every=1000") / "previews"
    assert {path.name for path in folder.glob("*.png")} == {"00000002.png"}


def test_a_preview_of_inpainting_knows_its_masks(run):
    folder = run("decoder", "run", "network/unet=toy", "stage=decoder_inpainting", "stage.network.in_channels=9")
    assert (folder / "previews" / "00000004.png").is_file()


def test_the_same_noise_each_time(system, cached):
    cfg = config("decoder", cached, *decoder(system / "movq"))
    stage, data = verb.make(cfg.stage), verb.make(cfg.data)
    stage.null.set(**data.null)
    batch = next(iter(data.val_dataloader()))
    draw = Drawings(movq=None, sampler="ddpm", steps=2, scale=3.0)
    with torch.no_grad():
        assert torch.equal(draw(stage, batch), draw(stage, batch))


def test_the_place_is_kept():
    before, after = (Preview(every=5, count=1, folder="x", draw=Reconstructions()) for _ in range(2))
    before.drawn = 3
    after.load_state_dict(before.state_dict())
    assert after.drawn == 3
