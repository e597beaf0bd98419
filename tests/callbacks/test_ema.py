"""The average of weights: closed form, plain loop, exchange, resume, accumulated gradients."""

import pytest
import torch
from fixtures.fitting import Repeated, trainer
from lightning import Callback, LightningModule

from open_kandinsky.callbacks.ema import EMA

BATCH = {"key": ["a"]}


class Line(LightningModule):
    """One weight that starts at 0 and rises by 1 each step."""

    def __init__(self):
        super().__init__()
        self.network = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        torch.nn.init.zeros_(self.network.weight)

    def training_step(self, batch, _):
        return -self.network.weight.sum()

    def validation_step(self, batch, _):
        self.seen = self.network.weight.detach().clone()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def average(ema):
    return float(next(iter(ema.average.values())))


def run(steps, decay=0.9, stage=None, **options):
    ema, stage = EMA(decay=decay), stage or Line()
    ran = trainer(steps, ema, **options)
    ran.fit(stage, datamodule=Repeated(BATCH))
    return ema, stage, ran


def plain_loop(steps, decay):
    value = 0.0
    for n in range(steps):
        d = min(decay, (1 + n) / (10 + n))
        value = d * value + (1 - d) * (n + 1)
    return value


@pytest.mark.parametrize("decay", [0.0, 0.05, 0.5, 0.9])
def test_a_plain_loop(decay):
    assert average(run(100, decay)[0]) == pytest.approx(plain_loop(100, decay), rel=1e-12)


def test_the_closed_form_of_a_line():
    """An average of n + 1 with constant decay d lags it by d / (1 - d) in the end: 0.1 -> 1/9."""
    assert average(run(80, decay=0.1)[0]) == pytest.approx(80 - 0.1 / 0.9, rel=1e-12)


def test_warm_up_is_the_first_decays():
    """After one step, decay is 1/10; after two, 2/11."""
    assert average(run(1, decay=0.9999)[0]) == pytest.approx(0.9, rel=1e-12)
    assert average(run(2, decay=0.9999)[0]) == pytest.approx(2 / 11 * 0.9 + 9 / 11 * 2, rel=1e-12)


def test_accumulated_gradients_count_once_a_step():
    """Four batches a step: the weight rises by 1 a step, as Lightning divides the loss by 4."""
    ema, _, ran = run(6, accumulate_grad_batches=4)
    assert ran.global_step == 6
    assert average(ema) == pytest.approx(plain_loop(6, 0.9), rel=1e-12)


def test_validation_sees_the_average_and_training_gets_its_weights_back():
    class Around(Callback):
        def on_validation_start(self, trainer, stage):
            self.inside = stage.network.weight.detach().clone()

        def on_train_batch_end(self, trainer, stage, *_):
            self.before = stage.network.weight.detach().clone()

    ema, around, stage = EMA(decay=0.9), Around(), Line()
    module = Repeated(BATCH)
    module.val_dataloader = lambda: torch.utils.data.DataLoader([0], collate_fn=lambda _: BATCH)
    trainer(3, ema, around, val_check_interval=3).fit(stage, datamodule=module)
    assert float(stage.seen) == average(ema) == pytest.approx(plain_loop(3, 0.9))
    assert torch.equal(stage.network.weight, around.before) and float(around.before) == 3


def test_saved_and_resumed(tmp_path):
    whole = average(run(10)[0])
    first, _, ran = run(4)
    ran.save_checkpoint(tmp_path / "x.ckpt")
    assert torch.load(tmp_path / "x.ckpt", weights_only=True)["callbacks"]["EMA"]["updates"] == 4
    ema, stage = EMA(decay=0.9), Line()
    trainer(10, ema).fit(stage, datamodule=Repeated(BATCH), ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    assert average(ema) == whole
