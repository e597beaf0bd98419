"""Every file of conf/experiment is trained for two steps at tiny size, with all that it configures, and drawn from."""

import re

import pytest
import torch
from fixtures.pictures import photo, right_third

from open_kandinsky.config import CONF, compose
from open_kandinsky.data.shapes.world import toy_world
from open_kandinsky.data.shapes.write import write_shapes
from open_kandinsky.loading import load
from open_kandinsky.train import train
from open_kandinsky.weights.build import part_of

pytestmark = pytest.mark.slow

EXPERIMENTS = sorted(
    str(p.relative_to(CONF / "experiment").with_suffix("")) for p in CONF.rglob("experiment/**/*.yaml")
)
DIMS = ["image_size=32", "clip=32", "clip_text_width=32", "clip_size=32", "text_length=16", "decoder_text_width=32"]
DIMS = [f"dims.{size}" for size in [*DIMS, "decoder_text=32", "context=32"]]
SMALL = {
    "clip": [
        "stage.network.vision={image_size: 32, layers: 1, width: 32, head_width: 16, patch_size: 8}",
        "stage.network.text.layers=1",
        "stage.network.text.heads=2",
    ],
    "movq": [
        *("stage.network.channels=32", "stage.network.multipliers=[1,1,2]", "stage.network.blocks=1"),
        *("stage.network.attention_levels=[2]", "stage.network.codes=32", "stage.discriminator.channels=32"),
        *("stage.pixel_loss.lpips=0.0", "stage.pixel_loss.perceptual=null", "callbacks=preview_movq"),
    ],
    "prior": [],
    "decoder": [
        *("stage.network.channels=32", "stage.network.multipliers=[1,1]", "stage.network.blocks=1"),
        *("stage.network.attention_levels=[1]", "stage.network.head_channels=16", "stage.network.emb=64"),
        "callbacks=frechet_decoder",
        *("callbacks.frechet.count=2", "callbacks.frechet.draw.steps=2", "callbacks.preview.draw.steps=2"),
    ],
}
PRIORS = {  # by the last name of the network's target
    "DiffusionPrior": ["stage.network.width=32", "stage.network.layers=1", "stage.network.heads=2"],
    "LinearPrior": [],
    "ResidualPrior": ["stage.network.blocks=2"],
}
MACHINE = ["trainer.accelerator=cpu", "trainer.devices=1", "strategy=single", "trainer.precision=32-true"]
MACHINE += ["~callbacks.progress", "+trainer.enable_progress_bar=false", "trainer.max_steps=2"]
QUICK = {"steps": 2, "prior_steps": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Shards of 32 px pictures: 16 to train on, 8 to validate."""
    root = tmp_path_factory.mktemp("pictures")
    write_shapes(root / "shapes", world=toy_world(size=32), images=16, val_images=8, seed=0, per_shard=8)
    return root / "shapes"


def typed(name, runs, pictures, cached, system):
    """What makes an experiment small. Its own choices stay: loss, schedule, optimiser, averages, conditions."""
    plain = compose.compose("train", [f"experiment={name}", *placeholders(name)])
    part = part_of(plain)
    overrides = [f"experiment={name}", *DIMS, *SMALL[part], *MACHINE, f"run_dir='{runs / name}'"]
    overrides += PRIORS[plain.stage.network._target_.rpartition(".")[2]] if part == "prior" else []
    if part in ("clip", "movq"):
        overrides += [f"data.urls='{pictures}/train'", f"data.val_urls='{pictures}/seen'", "data.workers=0"]
        overrides += ["data.batch_size=4"]
    else:
        overrides += [f"data.path='{cached}/cache/train'", f"data.val_path='{cached}/cache/seen'", "data.workers=0"]
        overrides += ["data.batch_size=4"]
    if "num_nodes" in plain.trainer:
        overrides += ["trainer.num_nodes=1"]
    if part == "decoder":
        overrides += [f"callbacks.preview.draw.movq.folder='{system}/movq'"]
        overrides += [f"callbacks.frechet.features.clip.folder='{system}/clip'"]
    if plain.init is not None:
        overrides += [f"init='{beginning(name, part, runs)}'"]
    return overrides


def placeholders(name):
    """Values for what an experiment leaves open, so that it can be composed to be looked at."""
    try:
        compose.compose("train", [f"experiment={name}"])
    except ValueError as error:
        return [f"{key}=x" for key in re.findall(r"^  ([\w.]+)=", str(error), re.MULTILINE)]
    return []


def beginning(name, part, runs):
    """The run whose weights an experiment begins with: one that was trained before it, in the order of names."""
    of_part = {"movq": "movq_67m", "prior": "kandinsky21/prior"}
    inpaints = "finetune" in name and "inpainting" in name
    return runs / of_part.get(part, "kandinsky21/inpainting" if inpaints else "kandinsky21/decoder_256")


ORDER = sorted(EXPERIMENTS, key=lambda name: ("finetune" in name, name))


@pytest.mark.parametrize("name", ORDER)
def test_an_experiment_trains_validates_previews_exports_and_draws(name, runs, pictures, cached, system):
    torch.manual_seed(0)
    cfg = compose.compose("train", typed(name, runs, pictures, cached, system))
    folder, part = train(cfg), part_of(cfg)
    assert (folder / "checkpoints" / "last.ckpt").is_file() and (folder / "weights.safetensors").is_file()
    rows = (folder / "metrics.csv").read_text()
    assert "val/" in rows.splitlines()[0], "it was not validated"
    if part in ("movq", "decoder"):
        assert list((folder / "previews").glob("*.png")), "it showed no preview"
    if part == "decoder":
        assert "val/frechet_own_clip" in rows
    pipe = load({"rest": system, part: folder})
    options = QUICK | ({"sampler": "ddpm"} if part == "decoder" else {})
    [image] = pipe("a red circle", **options)
    assert image.size == (32, 32)
    [edited] = pipe.inpaint("a red circle", photo(), right_third((32, 32)), **options)
    assert edited.size == (32, 32)


def test_there_is_one_for_every_file():
    assert len(ORDER) == len(list((CONF / "experiment").rglob("*.yaml"))) >= 22
