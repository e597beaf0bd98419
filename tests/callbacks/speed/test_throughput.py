"""Speed by a clock that the test turns, and operations known by hand."""

import pytest
import torch
from fixtures.fitting import Losses, Repeated, images, trainer
from fixtures.system import stage
from lightning import Callback, LightningModule
from lightning.pytorch.profilers import PassThroughProfiler

from open_kandinsky.callbacks.phases import Phases
from open_kandinsky.callbacks.throughput import DataCounts, StepFlops, Throughput, peak, utilisation

B, IN, OUT = 4, 8, 16


class Hands:
    """A clock that stands still but for what is done to it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Linear(LightningModule):
    """One product of matrices, whose step takes `seconds`."""

    def __init__(self, hands, seconds=3.0):
        super().__init__()
        self.network = torch.nn.Linear(IN, OUT)
        self.hands, self.seconds = hands, seconds

    def training_step(self, batch, at):
        self.hands.now += self.seconds
        return self.network(batch["x"]).sum()

    def validation_step(self, batch, at):
        self.hands.now += 100.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Slow(Repeated):
    """A batch takes `seconds` to come."""

    def __init__(self, hands, seconds=1.0):
        super().__init__({"x": torch.ones(B, IN, requires_grad=True), "key": ["k"] * B})
        self.hands, self.seconds = hands, seconds

    def train_dataloader(self):
        return Sleeps(self.batch, self.hands, self.seconds)


class Sleeps:
    def __init__(self, batch, hands, seconds):
        self.batch, self.hands, self.seconds = batch, hands, seconds

    def __iter__(self):
        while True:
            self.hands.now += self.seconds
            yield self.batch


def measured(steps, hands, data, *callbacks, **options):
    curve = Losses()
    options = dict(log_every_n_steps=1, profiler=Phases(PassThroughProfiler(), hands)) | options
    trainer(steps, Throughput(clock=hands), *callbacks, curve, **options).fit(Linear(hands), datamodule=data)
    return curve.curve


def test_a_quarter_of_the_time_is_waited():
    """1 s for a batch of 4, then 3 s for its step: one image a second; 3 products of B x IN by IN x OUT."""
    hands = Hands()
    curve = measured(5, hands, Slow(hands))
    assert all("speed/images_per_second" not in step for step in curve[:2]), "one is counted, and the next compiles"
    for step in curve[2:]:
        assert step["data/wait_share"] == pytest.approx(0.25)
        assert step["speed/images_per_second"] == pytest.approx(1.0)
        assert step["speed/aside_share"] == 0
        assert step["speed/tflops_per_device"] == pytest.approx(3 * 2 * B * IN * OUT / 4 / 1e12)
    assert "speed/mfu" not in curve[-1] and curve[-1]["speed/host_memory_gb"] > 0.1


def test_over_the_steps_since_it_was_logged_last():
    """Steps 1 to 4 of eight take 4 s each, the others 8 s: not the mean since the beginning."""
    hands = Hands()

    class Slower(Callback):
        def on_train_batch_end(self, run, module, *_):
            module.seconds = 3.0 if run.global_step < 4 else 7.0

    found = measured(8, hands, Slow(hands), Slower(), log_every_n_steps=2)
    speeds = [step.get("speed/images_per_second") for step in found]
    assert speeds == [*[None] * 3, *[pytest.approx(1.0)] * 2, *[pytest.approx(0.5)] * 3]


def test_neither_validation_nor_checkpoints_are_training():
    hands = Hands()
    data = Slow(hands)
    data.val_dataloader = lambda: torch.utils.data.DataLoader([0, 1])
    curve = measured(6, hands, data, val_check_interval=3)
    assert [step["speed/images_per_second"] for step in curve[2:]] == pytest.approx([1.0] * 4)
    assert curve[2]["speed/aside_share"] == 0
    assert curve[3]["speed/aside_share"] == pytest.approx(200 / 204)
    assert curve[3]["data/wait_share"] == pytest.approx(0.25)


@pytest.mark.slow
def test_the_first_step_is_the_same_step_though_it_is_counted():
    """To the bit, for a whole stage."""
    weights = []
    for callbacks in ([], [Throughput()]):
        made = stage("movq", "stage.adversary_from=0", "stage.quantise_from=0")
        trainer(2, *callbacks).fit(made, datamodule=Repeated(images(4)))
        weights.append(made.network.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def counted(run):
    with StepFlops() as counter:
        loss = run()
        counter.forward_ended()
        loss.backward()
        counter.backward_ended()
    return counter.model_flops()


def test_what_is_computed_twice_is_counted_once():
    net = torch.nn.Sequential(torch.nn.Linear(IN, 32), torch.nn.SiLU(), torch.nn.Linear(32, OUT))
    x = torch.randn(B, IN, requires_grad=True)
    by_hand = 3 * 2 * B * (IN * 32 + 32 * OUT)
    assert counted(lambda: net(x).sum()) == by_hand
    again = torch.utils.checkpoint.checkpoint
    assert counted(lambda: again(net, x, use_reentrant=False).sum()) == by_hand


def test_a_compiled_network_is_counted_and_compiled():
    net = torch.nn.Linear(IN, OUT)
    compiled, graphs = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(net.forward, backend=backend)
    x = torch.randn(B, IN, requires_grad=True)
    assert counted(lambda: compiled(x).sum()) == 3 * 2 * B * IN * OUT and not graphs
    compiled(x)
    assert len(graphs) == 1


def test_a_run_that_fails_in_its_first_step_leaves_no_counter():
    class Fails(Linear):
        def training_step(self, batch, at):
            raise RuntimeError("no")

    hands = Hands()
    callback = Throughput(clock=hands)
    with pytest.raises(RuntimeError, match="no"):
        trainer(1, callback).fit(Fails(hands), datamodule=Slow(hands))
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


PEAKS = {
    ("NVIDIA A100-SXM4-80GB", "bf16-mixed"): 312.0,
    ("NVIDIA A100 80GB PCIe", "bf16-mixed"): 312.0,
    ("NVIDIA H100 80GB HBM3", "bf16-mixed"): 989.4,
    ("NVIDIA H100 PCIe", "bf16-mixed"): 756.0,
    ("NVIDIA H200", "bf16-mixed"): 989.4,
    ("NVIDIA L4", "bf16-mixed"): 121.0,
    ("NVIDIA L40S", "bf16-mixed"): 362.0,
    ("NVIDIA L40", "bf16-mixed"): None,
    ("NVIDIA GeForce RTX 4090", "bf16-mixed"): 165.2,
    ("NVIDIA GeForce RTX 4090 D", "bf16-mixed"): None,
    ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16-mixed"): None,
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16-mixed"): None,
    ("NVIDIA H100 80GB HBM3", "32-true"): None,
    ("NVIDIA H100 80GB HBM3", "64-true"): None,
    ("a GPU of next year", "bf16-mixed"): None,
}


@pytest.mark.parametrize(("device", "precision"), PEAKS)
def test_a_peak_is_a_known_gpus_or_none(device, precision):
    assert peak(device, precision) == PEAKS[device, precision]


def test_float32_is_tf32_where_that_is_allowed(monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak("NVIDIA A100-SXM4-80GB", "32-true") == 156.0


def test_utilisation_is_achieved_over_peak(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    assert utilisation(78.0, torch.device("cuda:0"), "bf16-mixed") == {"speed/mfu": 0.25}
    assert utilisation(78.0, torch.device("cuda:0"), "64-true") == {}


def test_what_the_data_has_counted_is_logged():
    class Counting(Repeated):
        def counts(self):
            return {"skipped": 3, "read": 40}

    hands, curve = Hands(), Losses()
    made = Counting({"x": torch.ones(B, IN), "key": ["k"] * B})
    trainer(1, DataCounts(), curve, log_every_n_steps=1).fit(Linear(hands), datamodule=made)
    assert curve.curve[0]["data/skipped"] == 3 and curve.curve[0]["data/read"] == 40
