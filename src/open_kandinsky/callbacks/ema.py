"""Exponential moving average (EMA) of a network's weights, which validation and generation use in their place."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from open_kandinsky.core.distributed import gather_unsharded, local_shard, shard_like


class EMA(Callback):
    """After n steps, average = d average + (1 - d) weights, with d = min(decay, (1 + n) / (10 + n)).

    Only the stage's `network` is averaged: neither a discriminator nor a frozen encoder. Averages are sharded as the
    weights are, and are swapped with them for validation. In a checkpoint they are unsharded, so that any number of
    processes can resume from it.
    """

    def __init__(self, *, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.place(pl_module)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.place(pl_module)  # again: a sharded checkpoint is read after on_fit_start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.place(pl_module)

    def place(self, pl_module: LightningModule) -> None:
        """Start from the weights, or from what was loaded; on the weights' devices, and sharded as they are."""
        weights = _weights(pl_module)
        start = self.average or {name: w.detach().clone() for name, w in weights.items()}
        self.average = {name: shard_like(start[name], w) for name, w in weights.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.updates:  # a batch whose gradients are still being accumulated
            return
        n, self.updates = self.updates, trainer.global_step
        d = min(self.decay, (1 + n) / (10 + n))
        weights = [local_shard(w.detach()) for w in _weights(pl_module).values()]
        torch._foreach_lerp_([local_shard(average) for average in self.average.values()], weights, 1 - d)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.exchange(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.exchange(pl_module)

    @torch.no_grad()
    def exchange(self, pl_module: LightningModule) -> None:
        """Swap weights and averages, in place."""
        for name, parameter in _weights(pl_module).items():
            weight, average = local_shard(parameter), local_shard(self.average[name])
            before = weight.clone()
            weight.copy_(average)
            average.copy_(before)

    def state_dict(self) -> dict[str, Any]:
        """Called by every process: sharded averages are gathered in the first one, and empty in the others."""
        return {"updates": self.updates, "average": gather_unsharded(self.average)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates, self.average = state_dict["updates"], state_dict["average"]


def _weights(pl_module: LightningModule) -> dict[str, nn.Parameter]:
    return dict(pl_module.network.named_parameters())  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
