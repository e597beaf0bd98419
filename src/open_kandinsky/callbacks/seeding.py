"""Random numbers that depend on the seed and the batch's number, not on what a process drew before."""

import random
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class RandomNumbers(Callback):
    """Seeds torch for each training batch, by `seed` and the number of batches before it.

    So a resumed run draws the timesteps, noise and dropped conditions of an uninterrupted one, whatever a preview or a
    validation has drawn. Every validation has the same numbers. All processes are seeded alike: each draws for the
    batches of all, and takes its own part (core/draws.py).
    """

    def __init__(self, *, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._seed("train", trainer.fit_loop.epoch_loop.batch_progress.total.ready)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._seed("validation", batch_idx)

    def _seed(self, phase: str, batch: int) -> None:
        # The 0 was once the process's number; without it older runs could not be repeated bit for bit.
        torch.manual_seed(random.Random(f"{self.seed}/{phase}/0/{batch}").getrandbits(32))
