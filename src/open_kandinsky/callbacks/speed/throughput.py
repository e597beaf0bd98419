"""Pictures a second, how much of the hardware that is, and how long the training waited for data."""

import resource
import sys
import time
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from open_kandinsky.callbacks.phases import SAVING, WAITING, Clock, Phases, logs_now, phases
from open_kandinsky.callbacks.speed.flops import StepFlops
from open_kandinsky.callbacks.speed.peaks import peak

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
