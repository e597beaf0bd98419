"""The detector fires at made-up curves that collapse, once they have for long, and not at others."""

import math

import pytest
import torch
from fixtures.fitting import Repeated, images, trainer
from lightning import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from open_kandinsky.callbacks.collapse import Below, Collapse, Worse, link

TOLD = {"says": "it collapses", "remedies": "something else"}


def below(limit=0.1, after=0):
    return Below(figure="train/figure", limit=limit, after=after, **TOLD)


def worse(times=2.0, after=0):
    return Worse(figure="train/figure", times=times, after=after, **TOLD)


def detector(sign, folder="nowhere", patience=100):
    return Collapse(every=10, patience=patience, checkpoints=str(folder), signs={"sign": sign})


def watch(found, curve, steps=2000):
    for step in range(0, steps, 10):
        found.check("sign", curve(step), step)


HEALTHY = {
    "falls and stays above": (below(), lambda step: 0.15 + math.exp(-step / 200)),
    "one bad batch in five": (below(), lambda step: 0.0 if step % 50 == 20 else 0.5),
    "a loss that falls with noise": (worse(), lambda step: math.exp(-step / 900) * (1 + 0.5 * math.sin(step))),
    "a loss that rises by half": (worse(), lambda step: 1.0 if step < 500 else 1.5),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", HEALTHY)
def test_it_says_nothing_of_a_healthy_run(name):
    sign, curve = HEALTHY[name]
    watch(detector(sign), curve)


def test_it_warns_and_does_not_stop_where_balance_is_found_again():
    found = detector(below(), patience=400)
    with pytest.warns(UserWarning, match="step .*it collapses: train/figure is .* must stay above 0.1.*for 400 steps"):
        watch(found, lambda step: 0.0 if 500 <= step < 800 else 0.5)
    assert found.states["sign"].since is None


COLLAPSED = {
    "codes fall silent": (below(), lambda step: 0.5 if step < 500 else 0.01),
    "a loss that triples": (worse(), lambda step: 1.0 if step < 500 else 3.0),
}


@pytest.mark.filterwarnings("ignore:step")
@pytest.mark.parametrize("name", COLLAPSED)
def test_it_stops_what_has_collapsed(name):
    sign, curve = COLLAPSED[name]
    found = detector(sign)
    with pytest.raises(FloatingPointError, match="it collapses: train/figure is .*since step (5|6).*something else"):
        watch(found, curve)


def test_the_step_of_the_stop_is_known_without_smoothing():
    """A figure that was never above: the sign is there at the first look, the stop `patience` steps later."""
    with pytest.warns(UserWarning, match="step 0: "), pytest.raises(FloatingPointError, match="step 100: .*step 0"):
        watch(detector(below()), lambda step: 0.0)


@pytest.mark.filterwarnings("ignore:step")
def test_resumed_it_stops_at_the_same_step():
    def run(cut):
        found, step = detector(worse()), 0
        try:
            for step in range(0, 3000, 10):
                if step == cut:
                    state, found = found.state_dict(), detector(worse())
                    found.load_state_dict(state)
                found.check("sign", 1.0 if step < 700 else 4.0, step)
        except FloatingPointError as stop:
            return step, str(stop)

    assert run(300) == run(760) == run(None)


class Falling(LightningModule):
    """Logs 1 until step 20, and then 0."""

    def __init__(self):
        super().__init__()
        self.network = torch.nn.Linear(1, 1)

    def training_step(self, batch, at):
        self.log("train/figure", torch.tensor(1.0 if self.global_step < 20 else 0.0))
        return self.network.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_run_stops_and_the_checkpoint_from_before_is_kept(tmp_path):
    """The newest alone is kept by the run, and written over; the one from before stays by its second name."""
    keeper = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=1, save_last=True)
    found = Collapse(every=2, patience=40, checkpoints=str(tmp_path), signs={"sign": below(limit=0.5)})
    with pytest.warns(UserWarning, match="step .*: it collapses"), pytest.raises(FloatingPointError) as stop:
        trainer(200, found, keeper, enable_checkpointing=True).fit(Falling(), datamodule=Repeated(images(4)))
    began = found.states["sign"].since
    assert 20 < began < 40
    assert f"step {began + 40}: it collapses" in str(stop.value) and f"{tmp_path}/before_sign.ckpt" in str(stop.value)
    kept = torch.load(tmp_path / "before_sign.ckpt", weights_only=True)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == (began - 1) // 4 * 4 < last["global_step"]


def test_a_folder_is_kept_too(tmp_path):
    """A distributed checkpoint is one. What had the name before is gone, what is kept outlives its source."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text(name)
        link(tmp_path / name, tmp_path / "kept")
    (tmp_path / "b" / "part").unlink()
    assert [(p.name, p.read_text()) for p in (tmp_path / "kept").iterdir()] == [("part", "b")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "kept"]
