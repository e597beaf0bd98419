"""A training on a GPU: compiled, sharded, stopped and gone on with, it is the same, and keeps what was counted."""

import pytest
import torch
from fixtures.benchmarks import module
from fixtures.fitting import Losses, Repeated, latents, trainer
from fixtures.ranks import ranks
from fixtures.system import config, nothing_at_zero, stage
from fixtures.together import run
from torch._subclasses.fake_tensor import FakeTensorMode

from open_kandinsky.callbacks.health import Health
from open_kandinsky.callbacks.throughput import Throughput
from open_kandinsky.core.draws import ALONE, Draws

pytestmark = pytest.mark.gpu

GPU = ("trainer=gpu", "trainer.precision=32-true")


def trained(case, strategy, steps, *more, resume=None, save=None):
    (found,) = ranks(1, run, case, strategy, 1, steps, more, resume, save)
    return found


def assert_close(found, expected, tolerance):
    for one, other in zip(found["curve"], expected["curve"][-len(found["curve"]) :], strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], abs=tolerance)
    for name, value in expected["weights"].items():
        there = found["weights"][name].cpu()  # what is sharded stays on its GPU when a training ends
        torch.testing.assert_close(
            there, value.cpu(), rtol=0, atol=tolerance, msg=lambda told, name=name: f"{name}: {told}"
        )


@pytest.mark.parametrize("case", ["decoder", "prior"])
def test_killed_and_resumed_is_uninterrupted(case, tmp_path):
    """To the bit, in the precision that trainings on GPUs have."""
    half = str(tmp_path / "half.ckpt")
    whole = trained(case, "single", 8, "trainer=gpu")
    trained(case, "single", 4, "trainer=gpu", save=half)
    found = trained(case, "single", 8, "trainer=gpu", resume=half)
    assert_close(found, whole, 0)
    assert all(torch.equal(found["average"][name], value) for name, value in whole["average"].items())


@pytest.mark.parametrize(
    ("case", "strategy", "engine"),
    [("decoder", "single", "compile"), ("prior", "single", "[compile,recompute]"), ("decoder", "fsdp", "recompute")],
)
def test_other_ways_train_alike(case, strategy, engine):
    expected = trained(case, "single", 6, *GPU)
    assert_close(trained(case, strategy, 6, *GPU, f"engine={engine}"), expected, 1e-4)


class OfACpu(Draws):
    """A CPU's, wherever they are asked for."""

    def normal(self, like):
        return torch.randn(like.shape).to(like.device)

    def uniform(self, like, *shape):
        return torch.rand(len(like), *shape).to(like.device)

    def integers(self, like, high):
        return torch.randint(high, (len(like),)).to(like.device)


def on(device, batch):
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}


def test_a_step_is_a_cpus():
    """Its loss and its gradients, for the same draws."""
    found = {}
    for device in ("cpu", "cuda"):
        made = stage("decoder")
        nothing_at_zero(made.network)
        made.null.set(**Repeated(latents()).null)
        made.to(device)
        torch.manual_seed(0)
        loss = made.losses(on(device, latents()), OfACpu(0, 1))[0].mean()
        loss.backward()
        gradients = {name: p.grad.cpu() for name, p in made.network.named_parameters() if p.grad is not None}
        found[device] = loss.item(), gradients
    (ours, gradients), (theirs, expected) = found["cuda"], found["cpu"]
    assert ours == pytest.approx(theirs, rel=1e-5) and len(gradients) == len(expected) > 100
    for name, value in expected.items():
        torch.testing.assert_close(
            gradients[name], value, rtol=1e-3, atol=1e-5 * float(value.abs().max()) + 1e-6, msg=name
        )


def test_what_is_no_number_stops_the_training():
    class Spoilt(Repeated):
        def train_dataloader(self):
            good, bad = self.batch, self.batch | {"z": self.batch["z"] * float("nan")}
            return torch.utils.data.DataLoader([good, good, bad, good, good], batch_size=None)

    made = stage("decoder")
    with pytest.raises(FloatingPointError):
        trainer(5, Health(), accelerator="gpu").fit(made, datamodule=Spoilt(latents()))


def test_the_gpus_memory_and_share_are_logged():
    curve = Losses()
    run = trainer(5, Throughput(), curve, accelerator="gpu", precision="bf16-mixed", log_every_n_steps=1)
    run.fit(stage("decoder"), datamodule=Repeated(latents()))
    said = curve.curve[-1]
    assert 0 < said["speed/device_memory_gb"] < torch.cuda.get_device_properties(0).total_memory / 1e9
    assert said["speed/images_per_second"] > 0 and said["speed/tflops_per_device"] > 0


def test_a_step_keeps_what_was_counted():
    """Of each example, where a batch is large enough for the allocator's rounding to be nothing."""
    cost = module("cost")
    cfg = config("decoder", "runs", "trainer=gpu", "stage.network.channels=64", "stage.network.emb=256")
    with FakeTensorMode():
        expected = cost.counted(cost.made(cfg), cfg).activations
    made = cost.made(cfg).cuda()
    made.network.to(memory_format=torch.channels_last)
    held = []
    for n in (64, 64, 192):  # the first brings what libraries keep
        batch, before = on("cuda", cost.empty_batch(cfg, n)), torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16):
            loss = made.losses(batch, ALONE)[0].mean()
        held.append(torch.cuda.memory_allocated() - before)
        del loss, batch
    assert (held[2] - held[1]) / 128 == pytest.approx(expected, rel=0.05)
