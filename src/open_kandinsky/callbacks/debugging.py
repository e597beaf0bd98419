"""Training on a few batches again and again, which a network that can learn at all learns by heart."""

from typing import Any

from lightning import Callback, LightningModule, Trainer


class OverfitBatches(Callback):
    """Puts the first `count` batches in the place of all that follow, in turn.

    Lightning's `overfit_batches` shortens an epoch and relies on each one giving the same batches; ours go on where the
    one before ended. A batch is a dict, whose contents are replaced before the stage sees it.
    """

    def __init__(self, *, count: int) -> None:
        self.count = count
        self.batches: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if len(self.batches) < self.count:
            self.batches.append(dict(batch))
        else:
            batch.clear()
            batch.update(self.batches[trainer.global_step % self.count])
