"""Watches a run's numbers: gradient norms, and the first number that is none."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from open_kandinsky.callbacks.finite import AtOnce, Check, Later, Seen, first_unfinite
from open_kandinsky.callbacks.phases import logs_now
from open_kandinsky.core.distributed import unsharded
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
        self.check: Check = AtOnce()
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
