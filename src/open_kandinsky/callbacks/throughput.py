"""Speed of a training: images and FLOPs per second, model FLOPs utilisation (MFU), waiting for data, memory.

FLOPs are counted while a training step runs; the peaks of GPUs are in a table. The counts that the data keeps of its
samples are logged here too.
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
    """Data that counts its samples: seen, and skipped for which reason."""

    def counts(self) -> Mapping[str, int]:
        """This process's counts so far, under the same names in every process."""
        ...


class DataCounts(Callback):
    """Logs the data's counts, summed over processes, as data/<name>, as often as the loss."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        data: object = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, CountingData) and logs_now(trainer) and (mine := data.counts()):
            numbers = torch.tensor([float(mine[name]) for name in sorted(mine)], device=pl_module.device)
            total = trainer.strategy.reduce(numbers, reduce_op="sum").tolist()  # type: ignore[union-attr]
            pl_module.log_dict({f"data/{name}": n for name, n in zip(sorted(mine), total, strict=True)})


class StepFlops(TorchDispatchMode):
    """Counts the FLOPs of matrix products, convolutions and attention (2 a multiply-add) of a training step.

    A compiled network runs that step uncompiled, and is compiled afterwards. The formulas are torch's, but not its
    FlopCounterMode, which decomposes some operations: a step under it rounds differently, and a resumed run would not
    be the uninterrupted one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total, self.forward, self.backward = 0, 0, 0

    def __enter__(self) -> "StepFlops":
        # A function that is to be compiled under a dispatch mode stays uncompiled for good (torch before 2.15).
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
        self.forward = self.total - self.backward

    def backward_ended(self) -> None:
        self.backward = self.total - self.forward

    def model_flops(self) -> int:
        """FLOPs so far without recomputed activations: those by which the backward pass exceeds twice the forward pass.

        They count for HFU, and not for MFU (Chowdhery et al. 2022, appendix B).
        """
        self.forward_ended()
        return self.forward + min(self.backward, 2 * self.forward)


class Peak(NamedTuple):
    """TFLOP/s of a GPU's dense matrix products, accumulated in float32."""

    bf16: float  # float16 is as fast
    tf32: float


# From data sheets and architecture white papers, by a pattern of torch.cuda.get_device_name. In Lightning's table
# (fabric.utilities.throughput) some entries are those of sparse matrices, twice as high, and no H200 is found.
PEAKS = {
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
    """Peak TFLOP/s of the GPU of that name in Lightning's `precision`; None if unknown, as for a part of a GPU (MIG).

    Float32 counts as tf32 if that is allowed for matrix products. If not, it is still allowed for convolutions, and no
    one number is the peak.
    """
    peaks = [figures for name, figures in PEAKS.items() if re.search(rf"(^|\s|-){name}", device)]
    if not peaks or "MIG" in device:
        return None
    if precision in ("bf16-mixed", "bf16-true", "16-mixed", "16-true"):
        return peaks[0].bf16
    return peaks[0].tf32 if precision == "32-true" and torch.get_float32_matmul_precision() != "highest" else None


GB = 1e9


class Spent(NamedTuple):
    """Images and seconds of one process since an earlier moment, or their sums over processes."""

    images: float
    seconds: float
    waiting: float  # seconds of them, for a batch
    aside: float  # seconds of them, in validations and checkpoints

    def since(self, earlier: "Spent") -> "Spent":
        return Spent(*(now - then for now, then in zip(self, earlier, strict=True)))


class Throughput(Callback):
    """Logs speed/*, data/wait_share and memory as often as the loss, over the time since they were logged last.

    The first two steps of a run are left out: in the first FLOPs are counted, and the second compiles. Lightning's
    ThroughputMonitor synchronises with the GPU at every step, counts validation as training by default, and does not
    measure waiting; its DeviceStatsMonitor logs a hundred counters. Here the GPU is synchronised with once per log.
    """

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.counter: StepFlops | None = None  # while the first step runs
        self.flops = 0.0  # per image
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
        self.flops, self.counter = self.counter.model_flops() / images, None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = self.clock()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validating += self.clock() - self.began

    def _now(self, device: torch.device) -> Spent:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the images so far are done
        spent = self.phases.seconds
        return Spent(self.images, self.clock(), spent[WAITING], self.validating + spent[SAVING])

    def figures(self, trainer: Trainer, mine: Spent) -> dict[str, float]:
        """Speeds of all processes together; TFLOP/s and memory are per device."""
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
        return figures | utilisation(tflops, trainer.strategy.root_device, str(trainer.precision)) | memory(trainer)


def utilisation(tflops: float, device: torch.device, precision: str) -> dict[str, float]:
    """Model FLOPs utilisation, the share of the GPU's peak; nothing if that is unknown."""
    most = peak(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    return {} if most is None else {"speed/mfu": tflops / most}


def memory(trainer: Trainer) -> dict[str, float]:
    """Peak memory, the largest of all processes: of the device since the last call, of the host since the start."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes; Linux counts in KiB
    peaks = {"speed/host_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB}
    device = trainer.strategy.root_device
    if device.type == "cuda":
        peaks["speed/device_memory_gb"] = torch.cuda.max_memory_allocated(device) / GB
        torch.cuda.reset_peak_memory_stats(device)
    numbers = torch.tensor(list(peaks.values()), device=device)
    return dict(zip(peaks, trainer.strategy.reduce(numbers, reduce_op="max").tolist(), strict=True))  # type: ignore[union-attr]
