"""The curves of a run, in metrics.csv.

What a run has logged, through kills and resumes.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from open_kandinsky.core import files

Row = Mapping[str, object]


class Curves(Logger):
    """A row each time that figures are logged, with the step that they are of; a column for each figure.

    A process may be killed at any moment, and no row of before is lost. Lightning's CSVLogger, which this stands for,
    deletes the file when a run is started again and writes it anew, in place, for each new column.
    """

    def __init__(self, *, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self.columns: list[str] = []  # of the file, once this process has read it

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, *params: object, **more: object) -> None:
        """config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, int | float], step: int | None = None) -> None:
        """OSError names the file."""
        row = {**metrics, "step": step}
        if not self.columns or not row.keys() <= set(self.columns):
            self._write([*self.rows(), row])
        else:
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                file.write(written(self.columns, [row]))

    def rows(self) -> list[dict[str, str]]:
        """What is in the file, as text; half a row, which a killed process leaves at most, counts for nothing."""
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))

    @rank_zero_only
    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Leave the rows that are wanted, and no others."""
        if self.path.is_file():
            self._write([row for row in self.rows() if wanted(row)])

    def _write(self, rows: Sequence[Row]) -> None:
        self.columns = sorted({column for row in rows for column in row})
        header = dict(zip(self.columns, self.columns, strict=True))
        files.write(self.path, written(self.columns, [header, *rows]))


def written(columns: Sequence[str], rows: Sequence[Row]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    return text.getvalue()


KEY = "history"  # in a checkpoint
SENSES = {-1: ("loss", "lpips", "frechet"), 1: ("psnr", "ssim", "cosine", "retrieval")}  # what is better

Best = tuple[float | None, int | None]  # value and step


class History(Callback):
    """Puts into each checkpoint what a resumed run needs to go on with its curves, and takes it from there.

    - `runs`: each logger's own name of the run, so that the same one is gone on with
    - `figures`: the last value of everything that was logged, by which a sweep compares runs
    - `best`: of each figure that the progress bar shows, a validation's best value and its step, or None twice
    - `row`: what is logged at this step, but after the checkpoint is written
    """

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self.row: dict[str, int | float] = {}
        self.best: dict[str, Best] = {}
        self.resumed, self.begun = False, False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.figures |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.best = {name: (None, None) for name in shown(trainer)} | self.best
        runs = {type(logger).__name__: str(logger.version) for logger in trainer.loggers}
        known = {"step": trainer.global_step, "runs": runs, "figures": self.figures, "best": self.best}
        checkpoint[KEY] = {**known, "row": row_to_come(trainer) if self.begun else {}}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint.get(KEY, {"figures": {}, "row": {}})
        self.figures, self.row, self.resumed = kept["figures"], kept["row"], True
        self.best = kept.get("best", {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = True
        self._go_on(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Of a run that was killed after its last step, none is trained."""
        if not self.begun:
            self._go_on(trainer)

    def _go_on(self, trainer: Trainer) -> None:
        """Rows of what is done again are not there twice, and no row is missing."""
        for logger in trainer.loggers:
            if isinstance(logger, Curves):
                logger.keep(lambda row: int(str(row["step"])) < trainer.global_step)
                if self.row and not any(is_same(row, self.row) for row in logger.rows()):
                    step, figures = int(self.row["step"]), {k: v for k, v in self.row.items() if k != "step"}
                    logger.log_metrics(figures, step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            for name in shown(trainer):
                value = float(trainer.callback_metrics[name])
                self.best[name] = better(name, self.best.get(name, (None, None)), (value, trainer.global_step))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Where a run ended at a step with a validation, Lightning counts that step's row twice when it goes on."""
        if self.resumed:
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
            self.resumed = False


def shown(trainer: Trainer) -> list[str]:
    """The figures of the progress bar, in its order."""
    return [name for name in trainer.progress_bar_metrics if name in trainer.callback_metrics]


def better(name: str, before: Best, now: tuple[float, int]) -> Best:
    """The best so far or the present one; a figure whose sense nobody knows has none, and NaN is none."""
    sense = next(
        (sense for sense, names in SENSES.items() if name.startswith("val/") and any(n in name for n in names)), None
    )
    if sense is None or math.isnan(now[0]):
        return before
    return now if before[0] is None or sense * now[0] > sense * before[0] else before


def row_to_come(trainer: Trainer) -> dict[str, int | float]:
    """What Lightning logs of the present step once the callbacks, which write checkpoints, have ended.

    Without it, a run killed between the two would lack that row: it goes on from the step after.
    """
    loop = trainer.fit_loop.epoch_loop
    batches: Any = loop.batch_progress.total
    connector = trainer._logger_connector  # what is about to be logged is known to nobody else
    if batches.processed == batches.completed or not connector.should_update_logs:
        return {}
    figures = {name: float(value) for name, value in connector.metrics["log"].items()}
    return figures and {"epoch": trainer.current_epoch, **figures, "step": loop._batches_that_stepped}


def is_same(row: Row, other: Row) -> bool:
    """Whether a row of the file is of that step and has those figures."""
    return int(str(row["step"])) == other["step"] and all(row.get(name) for name in other)
