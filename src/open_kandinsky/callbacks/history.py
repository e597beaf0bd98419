"""The metrics of before a resume."""

import csv
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger


class History(Callback):
    """Keeps the rows of metrics.csv up to the step that a run goes on from: CSVLogger alone would delete them all."""

    def __init__(self, *, path: str) -> None:
        self.path = Path(path)
        self.text = self.path.read_text() if self.path.is_file() else ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put back what the logger has just deleted: the checkpoint may still turn out to be unreadable."""
        if self.text and trainer.is_global_zero:
            self.path.write_text(self.text)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if self.text and trainer.is_global_zero and isinstance(logger, CSVLogger):
                rows = csv.DictReader(self.text.splitlines())
                logger.experiment.metrics[:0] = [row for row in rows if int(row["step"]) < trainer.global_step]
                self.path.unlink()
                logger.save()
