"""Random numbers that belong to a batch, not to what a process did before it."""

import random
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class RandomNumbers(Callback):
    """Seeds torch anew for each training batch: by `seed`, and how many batches have come before.

    So a resumed run draws the timesteps, noise and dropped conditions of an uninterrupted one, and what a preview or a
    validation draws moves nothing. Validation has the same numbers every time. All processes are seeded alike: each
    draws for the batches of all, and takes its own part (core/draws.py).
    """

    def __init__(self, *, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._draw("train", trainer.fit_loop.epoch_loop.batch_progress.total.ready)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._draw("validation", batch_idx)

    def _draw(self, phase: str, batch: int) -> None:
        # The 0 was the first process's number: runs of one process are repeated to the bit by later versions.
        torch.manual_seed(random.Random(f"{self.seed}/{phase}/0/{batch}").getrandbits(32))
