"""A number that is none stops a run, with the step and the samples, before a weight has moved."""

import pytest
import torch
from lightning import LightningModule
from makers.fitting import Repeated, images, trainer
from makers.system import stage

from open_kandinsky.callbacks.health import Health


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
        trainer(10, Health(every=50)).fit(module, datamodule=Repeated(images(4)))
    assert len(module.before) == 3
    assert torch.equal(module.network.weight, module.before[2])
    assert not torch.equal(module.before[2], module.before[1])


def test_an_adversary_whose_gradient_is_infinite_does_not_move():
    made = stage("movq", "stage.adversary_from=0", "stage.quantise_from=0")
    weight = made.discriminator.net[0].weight
    weight.register_hook(lambda gradient: gradient * float("nan"))
    before = weight.detach().clone()
    with pytest.raises(FloatingPointError, match="gradient norm is nan at step 1"):
        trainer(3, Health(every=50)).fit(made, datamodule=Repeated(images(4)))
    assert torch.equal(before, weight)


def test_long_batches_name_their_first_samples():
    health = Health(every=1)
    health.keys = [f"k{at}" for at in range(64)]
    with pytest.raises(FloatingPointError, match=r"batch of 64 samples k0, k1, .*k7, \.\.\.;"):
        health._refuse("loss", torch.tensor(float("nan")), 7)
