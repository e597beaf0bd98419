"""Watches a run: gradient norms, and the first number that is none."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer


class Health(Callback):
    """Logs the gradient's norm, and stops at a loss or a gradient that is not finite, before a weight has moved."""

    def __init__(self, *, every: int) -> None:
        self.every = every
        self.keys: list[str] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Under manual optimisation Lightning may not see every step; torch does."""
        if not pl_module.automatic_optimization:
            for optimizer in trainer.optimizers:
                optimizer.register_step_pre_hook(partial(self._before_step, trainer))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.keys = list(batch["key"])

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._refuse("loss", loss, trainer.global_step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        norm = self._check(optimizer, trainer)
        if trainer.global_step % self.every == 0:
            pl_module.log("train/gradient_norm", norm)

    def _before_step(self, trainer: Trainer, optimizer: Optimizer, *_: Any) -> None:
        self._check(optimizer, trainer)

    def _check(self, optimizer: Optimizer, trainer: Trainer) -> Tensor:
        norm = torch.nn.utils.get_total_norm(_gradients(optimizer))
        self._refuse("gradient norm", norm, trainer.global_step)
        return norm

    def _refuse(self, name: str, value: Tensor, step: int) -> None:
        if not bool(torch.isfinite(value)):
            shown = ", ".join(self.keys[:8]) + (", ..." if len(self.keys) > 8 else "")
            raise FloatingPointError(
                f"{name} is {float(value.detach())} at step {step}, in the batch of {len(self.keys)} samples {shown}; "
                "no weight was changed by it, and the last checkpoint is as it was. Look at these samples, or lower "
                "stage.optimizer.lr, or set trainer.gradient_clip_val"
            )


def _gradients(optimizer: Optimizer) -> Iterable[Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
