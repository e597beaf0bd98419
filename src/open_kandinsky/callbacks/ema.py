"""A moving average of a network's weights: saved, resumed, and what validation and generation use."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from open_kandinsky.core.distributed import gather_unsharded, local_shard, shard_like


class EMA(Callback):
    """After n steps, average = d average + (1 - d) weights, with d = min(decay, (1 + n) / (10 + n)).

    Only the stage's `network` is averaged: neither an adversary nor a frozen encoder. The averages live beside the
    weights, sharded as they are, and change places with them for validation. In a checkpoint they are whole, so that
    it is resumed by any number of processes.
    """

    def __init__(self, *, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.place(pl_module)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.place(pl_module)  # again: a checkpoint of sharded weights is read after on_fit_start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.place(pl_module)

    def place(self, pl_module: LightningModule) -> None:
        """Start from the weights, or from what was loaded; beside the weights, and sharded as they are."""
        weights = _weights(pl_module)
        kept = self.average or {name: w.detach().clone() for name, w in weights.items()}
        self.average = {name: shard_like(kept[name], w) for name, w in weights.items()}

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
        """Weights to averages and back."""
        for name, weight in _weights(pl_module).items():
            used, average = local_shard(weight), local_shard(self.average[name])
            kept = used.clone()
            used.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Called by every process; sharded averages come together in the first, and are nothing in the others."""
        return {"updates": self.updates, "average": gather_unsharded(self.average)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates, self.average = state_dict["updates"], state_dict["average"]


def _weights(pl_module: LightningModule) -> dict[str, nn.Parameter]:
    return dict(pl_module.network.named_parameters())  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
