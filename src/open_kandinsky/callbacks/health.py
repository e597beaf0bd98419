"""Watches a run's numbers: gradient norms, and the first number that is none.

Numbers that must be finite: looked at when they are made, or one step later where looking would stop a GPU.
"""

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
    """Logs the rate of each optimiser's next step as often as the loss, by its schedule's name.

    Lightning's LearningRateMonitor would log each group of parameters, of which an optimiser with weight decay has two.
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
    """Logs each optimiser's gradient norm, and stops at a loss, gradient or weight that is not finite.

    On the CPU it stops before a weight has moved. On a GPU that would take a wait for the GPU at every step: it stops
    one step later, and before a checkpoint is written, a validation begins or the training ends. No checkpoint holds
    weights that are not finite.
    """

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.check: FiniteCheck = AtOnce()
        self.norms: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check = AtOnce() if pl_module.device.type == "cpu" else Later()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Under manual optimisation Lightning may not see every step; torch does."""
        if not pl_module.automatic_optimization:
            for at, optimizer in enumerate(trainer.optimizers):
                optimizer.register_step_pre_hook(partial(self._before_step, trainer, "" if at == 0 else f"_{at + 1}"))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.keys, self.norms = list(batch["key"]), {}

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._see("loss", loss, trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if pl_module.automatic_optimization:
            self._before_step(trainer, "", optimizer)

    def _before_step(self, trainer: Trainer, suffix: str, optimizer: Optimizer, *_: Any) -> None:
        norm = unsharded(torch.nn.utils.get_total_norm(_gradients(optimizer)))
        self.norms[f"train/gradient_norm{suffix}"] = norm
        self._see("gradient norm", unless_scaled(norm, trainer.precision_plugin), trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if logs_now(trainer):
            pl_module.log_dict(self.norms)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check.settle()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check.settle()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Before the file is begun."""
        self.check.settle()
        wrong = first_unfinite(pl_module.named_parameters())
        if not trainer.strategy.reduce_boolean_decision(wrong is None):  # so that no process waits for one that stopped
            raise NumericalError(
                f"{wrong or 'a part in another process'} has numbers that are not finite after step "
                f"{trainer.global_step}, though losses and gradients were; the last checkpoint is as it was. "
                "Lower stage.optimizer.lr"
            )

    def _see(self, name: str, value: Tensor, trainer: Trainer) -> None:
        self.check.see(value, Seen(name, trainer.global_step, self.keys))


def unless_scaled(norm: Tensor, precision: Any) -> Tensor:
    """0 while a scaler (16-mixed) multiplies the loss: gradients that overflow are then its own to skip, and to scale
    less. At a scale of 1 they are too great by themselves. Decided where the numbers are: no GPU is waited for.
    """
    scale = getattr(getattr(precision, "scaler", None), "_scale", None)
    return norm if scale is None else torch.where(scale.to(norm.device) > 1, torch.zeros_like(norm), norm)


def _gradients(optimizer: Optimizer) -> Iterable[Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


class Seen(NamedTuple):
    """Where a number comes from."""

    name: str
    step: int
    keys: list[str]  # of the batch's samples


@runtime_checkable
class FiniteCheck(Protocol):
    """`see` takes a number; after `settle` all have been looked at. NumericalError at one that is none."""

    def see(self, value: Float[Tensor, ""], seen: Seen) -> None: ...

    def settle(self) -> None: ...


class AtOnce:
    """Before anything is done with it: on the CPU, where looking costs nothing."""

    def see(self, value: Float[Tensor, ""], seen: Seen) -> None:
        refuse(float(value.detach()), seen, "no weight was changed by it, and")

    def settle(self) -> None:
        pass


class Later:
    """When the next step's is given, by which time a GPU has long computed it; the host waits for no kernel of its own.

    A weight may have moved by it. So whoever writes or uses weights must `settle` first.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[Tensor, torch.cuda.Event | None, Seen]] = deque()

    def see(self, value: Float[Tensor, ""], seen: Seen) -> None:
        while self.waiting and self.waiting[0][2].step < seen.step:
            self._look()
        self.waiting.append((*fetched(value.detach()), seen))

    def settle(self) -> None:
        while self.waiting:
            self._look()

    def _look(self) -> None:
        value, done, seen = self.waiting.popleft()
        if done is not None:
            done.synchronize()
        refuse(float(value), seen, "no checkpoint was written since, and")


def fetched(value: Float[Tensor, ""]) -> tuple[Float[Tensor, ""], torch.cuda.Event | None]:
    """A copy on its way to the host, and what tells that it has arrived."""
    if not value.is_cuda:
        return value.clone(), None
    there = torch.empty_like(value, device="cpu", pin_memory=True)
    there.copy_(value, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return there, done


def refuse(value: float, seen: Seen, meanwhile: str) -> None:
    if not torch.isfinite(torch.tensor(value)):
        keys = ", ".join(seen.keys[:8]) + (", ..." if len(seen.keys) > 8 else "")
        raise NumericalError(
            f"{seen.name} is {value} at step {seen.step}, in the batch of {len(seen.keys)} samples {keys}; "
            f"{meanwhile} the last checkpoint is as it was. Look at these samples, or lower stage.optimizer.lr, or set "
            "trainer.gradient_clip_val"
        )


def first_unfinite(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of a weight that is not finite; of a sharded one each process looks at its own part."""
    parts = {name: local_shard(weight) for name, weight in weights}
    if not parts or bool(torch.stack([part.isfinite().all() for part in parts.values()]).all()):
        return None
    return next(name for name, part in parts.items() if not bool(part.isfinite().all()))
