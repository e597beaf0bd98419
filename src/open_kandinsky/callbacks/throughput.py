"""What the data counts while it is read: samples seen, samples skipped and why.

The floating-point operations of one training step, counted while it runs.

What a GPU could do: dense matrix products, from the vendor's data sheets and architecture white papers.

Lightning has such a table (fabric.utilities.throughput), but some of its entries are those for sparse matrices, which
are twice as high, and it does not know an H200 by the name that its driver gives.

Pictures a second, how much of the hardware that is, and how long the training waited for data.
"""

import re
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from open_kandinsky.callbacks.phases import SAVING, WAITING, Clock, Phases, logs_now, phases


@runtime_checkable
class CountingData(Protocol):
    """Data that counts. `counts`: this process's so far, under the same names in every process."""

    def counts(self) -> Mapping[str, int]: ...


class DataCounts(Callback):
    """Logs data/<name> as often as the loss, summed over processes, where the run's data counts."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        data: object = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, CountingData) and logs_now(trainer) and (mine := data.counts()):
            numbers = torch.tensor([float(mine[name]) for name in sorted(mine)], device=pl_module.device)
            total = trainer.strategy.reduce(numbers, reduce_op="sum").tolist()  # type: ignore[union-attr]
            pl_module.log_dict({f"data/{name}": n for name, n in zip(sorted(mine), total, strict=True)})


class StepFlops(TorchDispatchMode):
    """Counts matrix products, convolutions and attention (2 operations a multiply-add) while it is entered.

    Nothing is computed for it: it looks on at a step of the training. A compiled network runs that step uncompiled,
    and is compiled afterwards. By torch's own formulas, but not by its FlopCounterMode, which takes some operations
    apart: a step under it rounds differently, and a resumed run would not be the uninterrupted one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total, self.forward, self.backward = 0, 0, 0

    def __enter__(self) -> "StepFlops":
        # Who is asked to compile while somebody looks on (torch before 2.15) runs uncompiled ever after.
        self.uncompiled = torch.compiler.set_stance("force_eager")
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.uncompiled.__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out

    def forward_ended(self) -> None:
        self.forward += self._new()

    def backward_ended(self) -> None:
        self.backward += self._new()

    def models(self) -> int:
        """The model's own so far: a backward pass is at most twice the forward pass; more is recomputed activations.

        What is computed twice to save memory is not counted (Chowdhery et al. 2022, appendix B: MFU, and not HFU).
        """
        self.forward_ended()
        return self.forward + min(self.backward, 2 * self.forward)

    def _new(self) -> int:
        return self.total - self.forward - self.backward


class Peak(NamedTuple):
    """In TFLOP/s, without sparsity, sums in float32."""

    bf16: float  # float16 is as fast
    tf32: float


PEAKS = {  # a pattern of the name that torch.cuda.get_device_name gives
    r"A100\b": Peak(312.0, 156.0),
    r"H100 80GB HBM3$": Peak(989.4, 494.7),
    r"H100 PCIe$": Peak(756.0, 378.0),
    r"H100 NVL$": Peak(835.5, 417.5),
    r"H200$": Peak(989.4, 494.7),
    r"H200 NVL$": Peak(835.5, 417.5),
    r"L4$": Peak(121.0, 60.0),
    r"L40S$": Peak(362.0, 183.0),
    r"A10$": Peak(125.0, 62.5),
    r"A40$": Peak(149.7, 74.8),
    r"RTX A6000$": Peak(154.8, 77.4),
    r"RTX 3090$": Peak(71.0, 35.6),
    r"RTX 4090$": Peak(165.2, 82.6),
}


def peak(device: str, precision: str) -> float | None:
    """TFLOP/s of the GPU of that name in Lightning's `precision`; None where it is not known: no number is guessed.

    A part of a GPU (MIG) is not known. Float32 is tf32 if matrix products are allowed to be; if not, convolutions
    still are, and no one number is the peak.
    """
    found = [
        figures for name, figures in PEAKS.items() if re.search(rf"(^|\s|-){name}", device) and "MIG" not in device
    ]
    column = arithmetic(precision)
    return getattr(found[0], column) if found and column else None


def arithmetic(precision: str) -> str | None:
    if precision in ("bf16-mixed", "bf16-true", "16-mixed", "16-true"):
        return "bf16"
    return "tf32" if precision == "32-true" and torch.get_float32_matmul_precision() != "highest" else None


GB = 1e9


class Spent(NamedTuple):
    """In one process since an earlier moment; or, of all processes, the sums."""

    images: float
    seconds: float
    waiting: float  # for a batch
    aside: float  # in validations and checkpoints

    def since(self, earlier: "Spent") -> "Spent":
        return Spent(*(now - then for now, then in zip(self, earlier, strict=True)))


class Throughput(Callback):
    """Logs speed/*, data/wait_share and memory as often as the loss, over the time since they were logged last.

    The first two steps of a run are left out: one has its operations counted, and the next compiles. Lightning's
    ThroughputMonitor waits for the GPU at every step, counts a validation as training where it is not told otherwise,
    and knows no waiting; its DeviceStatsMonitor logs a hundred counters. Here a GPU is waited for once each time it is
    logged.
    """

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.counter: StepFlops | None = None  # while the first step runs
        self.flops = 0.0  # an image
        self.images, self.validating, self.began = 0, 0.0, 0.0
        self.last: Spent | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.phases: Phases = phases(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self.images:
            self.counter = StepFlops()
            self.counter.__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self.counter is not None:
            self.counter.forward_ended()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.counter is not None:
            self.counter.backward_ended()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.counter is not None:
            self._stop_counting(1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch["key"])
        if self.counter is not None:
            self._stop_counting(len(batch["key"]))
        elif self.last is None:
            self.last = self._now(pl_module.device)
        elif logs_now(trainer) and not trainer.fit_loop._should_accumulate():
            now = self._now(pl_module.device)
            pl_module.log_dict(self.figures(trainer, now.since(self.last)))
            self.last = now

    def _stop_counting(self, images: int) -> None:
        assert self.counter is not None
        self.counter.__exit__(None, None, None)
        self.flops, self.counter = self.counter.models() / images, None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = self.clock()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validating += self.clock() - self.began

    def _now(self, device: torch.device) -> Spent:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what has been asked for so far is done
        spent = self.phases.seconds
        return Spent(self.images, self.clock(), spent[WAITING], self.validating + spent[SAVING])

    def figures(self, trainer: Trainer, mine: Spent) -> dict[str, float]:
        """Of all processes together; TFLOP/s and memory are one device's."""
        numbers = torch.tensor(mine, device=trainer.strategy.root_device)
        total = Spent(*trainer.strategy.reduce(numbers, reduce_op="sum").tolist())  # type: ignore[union-attr]
        training = total.seconds - total.aside
        tflops = self.flops * total.images / training / 1e12
        figures = {
            "speed/images_per_second": total.images / training * trainer.world_size,
            "speed/tflops_per_device": tflops,
            "speed/aside_share": total.aside / total.seconds,
            "data/wait_share": total.waiting / training,
        }
        used = utilisation(tflops, trainer.strategy.root_device, str(trainer.precision))
        return figures | used | memory(trainer)


def utilisation(tflops: float, device: torch.device, precision: str) -> dict[str, float]:
    """Model FLOPs over the GPU's peak; nothing where that is not known."""
    could = peak(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    return {} if could is None else {"speed/mfu": tflops / could}


def memory(trainer: Trainer) -> dict[str, float]:
    """The fullest process's: of the device since this was asked last, of the host's main memory since it began."""
    device, peaks = trainer.strategy.root_device, {"speed/host_memory_gb": host_peak() / GB}
    if device.type == "cuda":
        peaks["speed/device_memory_gb"] = torch.cuda.max_memory_allocated(device) / GB
        torch.cuda.reset_peak_memory_stats(device)
    numbers = torch.tensor(list(peaks.values()), device=device)
    return dict(zip(peaks, trainer.strategy.reduce(numbers, reduce_op="max").tolist(), strict=True))  # type: ignore[union-attr]


def host_peak() -> int:
    """Bytes. Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
