"""Random numbers that belong to a batch, not to what a process did before it."""

import random
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class RandomNumbers(Callback):
    """Seeds torch anew for each training batch: by `seed`, the process, and how many batches have come before.

    So a resumed run draws the timesteps, noise and dropped conditions of an uninterrupted one, no two processes draw
    alike, and what a preview or a validation draws moves nothing. Validation has the same numbers every time.
    """

    def __init__(self, *, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._draw("train", trainer, trainer.fit_loop.epoch_loop.batch_progress.total.ready)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._draw("validation", trainer, batch_idx)

    def _draw(self, phase: str, trainer: Trainer, batch: int) -> None:
        torch.manual_seed(random.Random(f"{self.seed}/{phase}/{trainer.global_rank}/{batch}").getrandbits(32))
