"""A moving average of a network's weights: saved, resumed, and what validation and generation use."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn


class EMA(Callback):
    """After n steps, average = d average + (1 - d) weights, with d = min(decay, (1 + n) / (10 + n)).

    Only the stage's `network` is averaged: neither an adversary nor a frozen encoder. The averages live beside the
    weights, sharded as they are, and change places with them for validation.
    """

    def __init__(self, *, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = _weights(pl_module)
        kept = self.average or {name: w.detach().clone() for name, w in weights.items()}
        self.average = {name: kept[name].to(w.device) for name, w in weights.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.updates:  # a batch whose gradients are still being accumulated
            return
        n, self.updates = self.updates, trainer.global_step
        d = min(self.decay, (1 + n) / (10 + n))
        weights = [w.detach() for w in _weights(pl_module).values()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - d)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.exchange(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.exchange(pl_module)

    @torch.no_grad()
    def exchange(self, pl_module: LightningModule) -> None:
        """Weights to averages and back."""
        for name, weight in _weights(pl_module).items():
            kept = weight.detach().clone()
            weight.copy_(self.average[name])
            self.average[name].copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates, self.average = state_dict["updates"], state_dict["average"]


def _weights(pl_module: LightningModule) -> dict[str, nn.Parameter]:
    return dict(pl_module.network.named_parameters())  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
