"""Logs learning rates and gradient norms, and stops a run on the first NaN or Inf.

On a GPU numbers are checked one step later, since reading one at once would wait for the GPU.
"""

import math
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from open_kandinsky.callbacks.phases import logs_now
from open_kandinsky.core.distributed import local_shard, unsharded
from open_kandinsky.core.errors import NumericalError


class LearningRate(Callback):
    """Logs the rate of each optimiser's next step, under its schedule's name, as often as the loss.

    Lightning's LearningRateMonitor would log each parameter group, of which an optimiser with weight decay has two.
    """

    def __init__(self) -> None:
        self.rates: dict[str, float] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        schedules: Any = trainer.lr_scheduler_configs
        self.rates = {each.name: each.scheduler.optimizer.param_groups[0]["lr"] for each in schedules}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if logs_now(trainer):
            pl_module.log_dict(self.rates)


class Health(Callback):
    """Logs each optimiser's gradient norm, and raises NumericalError at a loss, gradient or weight that is not finite.

    On the CPU it stops before a weight has moved. On a GPU it stops one step later, and before a checkpoint is written,
    a validation starts or the training ends. No checkpoint holds weights that are not finite.
    """

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.check: FiniteCheck = AtOnce()
        self.norms: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check = AtOnce() if pl_module.device.type == "cpu" else Later()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Under manual optimisation Lightning does not call on_before_optimizer_step for bare torch optimisers."""
        if not pl_module.automatic_optimization:
            for at, optimizer in enumerate(trainer.optimizers):
                optimizer.register_step_pre_hook(partial(self._before_step, trainer, "" if at == 0 else f"_{at + 1}"))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.keys, self.norms = list(batch["key"]), {}

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.check.see(loss, CheckedNumber("loss", trainer.global_step, self.keys))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if pl_module.automatic_optimization:
            self._before_step(trainer, "", optimizer)

    def _before_step(self, trainer: Trainer, suffix: str, optimizer: Optimizer, *_: Any) -> None:
        norm = unsharded(torch.nn.utils.get_total_norm(_gradients(optimizer)))
        self.norms[f"train/gradient_norm{suffix}"] = norm
        number = CheckedNumber("gradient norm", trainer.global_step, self.keys)
        self.check.see(unless_scaled(norm, trainer.precision_plugin), number)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if logs_now(trainer):
            pl_module.log_dict(self.norms)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check.settle()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check.settle()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse, before the file is opened, to save weights that are not finite."""
        self.check.settle()
        wrong = first_not_finite(pl_module.named_parameters())
        if not trainer.strategy.reduce_boolean_decision(wrong is None):  # so that no process waits for one that stopped
            raise NumericalError(
                f"{wrong or 'a part in another process'} has numbers that are not finite after step "
                f"{trainer.global_step}, though losses and gradients were; the last checkpoint is as it was. "
                "Lower stage.optimizer.lr"
            )


def unless_scaled(norm: Tensor, precision: Any) -> Tensor:
    """The norm, or 0 while a gradient scaler (16-mixed) has a scale above 1: it skips overflows and lowers its scale.

    Computed on the norm's device, so that no GPU is waited for.
    """
    scale = getattr(getattr(precision, "scaler", None), "_scale", None)
    return norm if scale is None else torch.where(scale.to(norm.device) > 1, torch.zeros_like(norm), norm)


def _gradients(optimizer: Optimizer) -> Iterable[Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


class CheckedNumber(NamedTuple):
    """The name and origin of a number that must be finite."""

    name: str
    step: int
    keys: list[str]  # of the batch's samples


@runtime_checkable
class FiniteCheck(Protocol):
    """`see` takes a number; after `settle` all have been checked. NumericalError for one that is not finite."""

    def see(self, value: Float[Tensor, ""], number: CheckedNumber) -> None: ...

    def settle(self) -> None: ...


class AtOnce:
    """Checks a number when it is given: on the CPU, where that costs nothing."""

    def see(self, value: Float[Tensor, ""], number: CheckedNumber) -> None:
        refuse(float(value.detach()), number, "no weight was changed by it, and")

    def settle(self) -> None:
        pass


class Later:
    """Checks a number when the next step's is given, by which time the GPU has computed it: the host hardly waits.

    By then the number may have changed weights, so `settle` before weights are used or saved.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[Tensor, torch.cuda.Event | None, CheckedNumber]] = deque()

    def see(self, value: Float[Tensor, ""], number: CheckedNumber) -> None:
        self.settle(before=number.step)
        self.waiting.append((*copy_to_host(value.detach()), number))

    def settle(self, before: int | float = math.inf) -> None:
        while self.waiting and self.waiting[0][2].step < before:
            value, copied, number = self.waiting.popleft()
            if copied is not None:
                copied.synchronize()
            refuse(float(value), number, "no checkpoint was written since, and")


def copy_to_host(value: Float[Tensor, ""]) -> tuple[Float[Tensor, ""], torch.cuda.Event | None]:
    """An asynchronous copy, and the event after which it is complete (None for a number of the CPU)."""
    if not value.is_cuda:
        return value.clone(), None
    copy = torch.empty_like(value, device="cpu", pin_memory=True)
    copy.copy_(value, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return copy, copied


def refuse(value: float, number: CheckedNumber, meanwhile: str) -> None:
    if not math.isfinite(value):
        keys = ", ".join(number.keys[:8]) + (", ..." if len(number.keys) > 8 else "")
        raise NumericalError(
            f"{number.name} is {value} at step {number.step}, in the batch of {len(number.keys)} samples {keys}; "
            f"{meanwhile} the last checkpoint is as it was. Look at these samples, or lower stage.optimizer.lr, or set "
            "trainer.gradient_clip_val"
        )


def first_not_finite(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of a weight that is not finite, if any; each process checks its own shards, in one transfer."""
    finite = {name: local_shard(weight).isfinite().all() for name, weight in weights}
    if not finite or bool(torch.stack([*finite.values()]).all()):
        return None
    return next(name for name, is_finite in finite.items() if not bool(is_finite))
