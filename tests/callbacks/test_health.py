"""A number that is none stops a run, with the step and the samples, before a weight has moved."""

import pytest
import torch
from fixtures.fitting import Losses, Repeated, images, trainer
from fixtures.knowing import gradient_norms
from fixtures.ranks import ranks
from fixtures.system import stage
from lightning import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from open_kandinsky.callbacks.health import AtOnce, CheckedNumber, Health, Later


class Steep(LightningModule):
    """Its loss, or the loss's gradient, stops being a number at the third step."""

    def __init__(self, wrong, automatic):
        super().__init__()
        self.automatic_optimization = automatic
        self.network = torch.nn.Linear(1, 1, bias=False)
        self.wrong = wrong
        self.before = []

    def training_step(self, batch, at):
        self.before.append(self.network.weight.detach().clone())
        loss = self.network.weight.square().sum()
        if at == 2:
            loss = self.wrong(loss)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


WRONG = {
    "loss is nan": lambda loss: loss * torch.tensor(float("nan")),
    "loss is inf": lambda loss: loss + float("inf"),
    "gradient norm is": lambda loss: (loss - loss.detach()).abs().sqrt().sum(),  # 0, with an infinite slope
}


@pytest.mark.parametrize("automatic", [True, False])
@pytest.mark.parametrize("told", WRONG)
def test_it_stops_before_a_weight_has_moved(told, automatic):
    module = Steep(WRONG[told], automatic)
    with pytest.raises(FloatingPointError, match=f"{told}.* at step 2, in the batch of 4 samples 00000/000, 00000/001"):
        trainer(10, Health()).fit(module, datamodule=Repeated(images(4)))
    assert len(module.before) == 3
    assert torch.equal(module.network.weight, module.before[2])
    assert not torch.equal(module.before[2], module.before[1])


def test_an_adversary_whose_gradient_is_infinite_does_not_move():
    made = stage("movq", "stage.adversary_from=0", "stage.quantise_from=0")
    weight = made.discriminator.net[0].weight
    weight.register_hook(lambda gradient: gradient * float("nan"))
    before = weight.detach().clone()
    with pytest.raises(FloatingPointError, match="gradient norm is nan at step 1"):
        trainer(3, Health()).fit(made, datamodule=Repeated(images(4)))
    assert torch.equal(before, weight)


def test_long_batches_name_their_first_samples():
    seen = CheckedNumber("loss", 7, [f"k{at}" for at in range(64)])
    with pytest.raises(FloatingPointError, match=r"batch of 64 samples k0, k1, .*k7, \.\.\.;"):
        AtOnce().see(torch.tensor(float("nan")), seen)


class Deferred(Health):
    """As on a GPU."""

    def on_fit_start(self, trainer, pl_module):
        self.check = Later()


@pytest.mark.parametrize("automatic", [True, False])
@pytest.mark.parametrize("told", WRONG)
def test_on_a_gpu_it_stops_a_step_later_and_names_the_step(told, automatic):
    module = Steep(WRONG[told], automatic)
    with pytest.raises(FloatingPointError, match=f"{told}.* at step 2, in the batch of 4 samples 00000/000, 00000/001"):
        trainer(10, Deferred()).fit(module, datamodule=Repeated(images(4)))
    assert len(module.before) == 4, "the next step's forward pass, and no more"


def saving(folder, every):
    return ModelCheckpoint(dirpath=folder, every_n_train_steps=every, save_top_k=-1, filename="{step}")


@pytest.mark.parametrize("health", [Health, Deferred])
@pytest.mark.parametrize("told", WRONG)
def test_no_checkpoint_holds_a_number_that_is_none(tmp_path, told, health):
    """Though one is due at the very step at which the weights are lost."""
    module = Steep(WRONG[told], automatic=True)
    run = trainer(10, health(), saving(tmp_path, 1), enable_checkpointing=True)
    with pytest.raises(FloatingPointError, match="at step 2"):
        run.fit(module, datamodule=Repeated(images(4)))
    kept = {path.name: torch.load(path, weights_only=True) for path in tmp_path.glob("*.ckpt")}
    assert sorted(kept) == ["step=1.ckpt", "step=2.ckpt"]
    assert all(weight.isfinite().all() for each in kept.values() for weight in each["state_dict"].values())


@pytest.mark.parametrize("health", [Health, Deferred])
def test_weights_that_a_finite_gradient_has_blown_up_are_not_kept(tmp_path, health):
    module = Steep(lambda loss: loss, automatic=True)
    torch.nn.init.constant_(module.network.weight, 2.0)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=3e38)  # times 4
    with pytest.raises(FloatingPointError, match="network.weight has numbers that are not finite after step 1"):
        trainer(10, health(), saving(tmp_path, 1), enable_checkpointing=True).fit(
            module, datamodule=Repeated(images(4))
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("health", [Health, Deferred])
def test_the_last_step_is_looked_at_too(health):
    module = Steep(WRONG["loss is nan"], automatic=True)
    with pytest.raises(FloatingPointError, match="at step 2"):
        trainer(3, health()).fit(module, datamodule=Repeated(images(4)))


def test_the_norm_is_logged_when_the_loss_is():
    module = Steep(lambda loss: loss, automatic=True)
    curve = Losses()
    trainer(6, Health(), curve, log_every_n_steps=3).fit(module, datamodule=Repeated(images(4)))
    norms = [step.get("train/gradient_norm") for step in curve.curve]
    expected = [2 * float(weight.norm()) for weight in module.before]
    assert norms[:2] == [None, None]
    assert norms[2:] == pytest.approx([expected[2]] * 3 + [expected[5]]), "what was logged last stays"


def test_each_optimiser_has_a_norm_of_its_own():
    made = stage("movq", "stage.adversary_from=0", "stage.quantise_from=0")
    curve = Losses()
    trainer(2, Health(), curve, log_every_n_steps=1).fit(made, datamodule=Repeated(images(4)))
    assert {"train/gradient_norm", "train/gradient_norm_2"} <= set(curve.curve[-1])
    assert curve.curve[-1]["train/gradient_norm"] != curve.curve[-1]["train/gradient_norm_2"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_of_two_processes_the_norm_is_that_of_one(strategy):
    """Sharded gradients' too."""
    alone, (one, other) = gradient_norms("single", 1), ranks(2, gradient_norms, strategy, 2)
    assert one == other and one["kinds"] == (["DTensor"] if strategy == "fsdp" else ["Parameter"])
    assert len(alone["norms"]) == 3 and one["norms"] == pytest.approx(alone["norms"], rel=1e-4)
