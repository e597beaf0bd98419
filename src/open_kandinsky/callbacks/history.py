"""What a run has logged, through kills and resumes: its curves in metrics.csv, and its figures in each checkpoint."""

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
    """A logger to a CSV file: a row each time that figures are logged, with their step; a column for each figure.

    No row is lost when the process is killed. Lightning's CSVLogger deletes the file when a run is started again, and
    rewrites it in place for each new column.
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
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, int | float], step: int | None = None) -> None:
        """OSError names the file."""
        row = {**metrics, "step": step}
        if not self.columns or not row.keys() <= set(self.columns):
            self._write([*self.rows(), row])
        else:
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                file.write(to_csv(self.columns, [row]))

    def rows(self) -> list[dict[str, str]]:
        """The file's rows, as text; without an unfinished last line, which a killed process may leave."""
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))

    @rank_zero_only
    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Remove all rows but the wanted ones."""
        if self.path.is_file():
            self._write([row for row in self.rows() if wanted(row)])

    def _write(self, rows: Sequence[Row]) -> None:
        self.columns = sorted({column for row in rows for column in row})
        header = dict(zip(self.columns, self.columns, strict=True))
        files.write(self.path, to_csv(self.columns, [header, *rows]))


def to_csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    return text.getvalue()


KEY = "history"  # in a checkpoint
SIGNS = {-1: ("loss", "lpips", "frechet"), 1: ("psnr", "ssim", "cosine", "retrieval")}  # -1: lower is better

Best = tuple[float | None, int | None]  # value and step


class History(Callback):
    """Adds to each checkpoint what a resumed run needs to continue its curves, and reads it on resume.

    - `runs`: each logger's own id of the run, so that it is continued there
    - `figures`: the last value of everything that was logged, by which a sweep compares runs
    - `best`: of each figure of the progress bar, the best value in a validation and its step, or None twice
    - `row`: the figures that Lightning logs at this step after the checkpoint is written
    """

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self.row: dict[str, int | float] = {}
        self.best: dict[str, Best] = {}
        self.resumed, self.started = False, False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.figures |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.best = {name: (None, None) for name in shown(trainer)} | self.best
        runs = {type(logger).__name__: str(logger.version) for logger in trainer.loggers}
        known = {"step": trainer.global_step, "runs": runs, "figures": self.figures, "best": self.best}
        checkpoint[KEY] = {**known, "row": pending_row(trainer) if self.started else {}}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint.get(KEY, {"figures": {}, "row": {}})
        self.figures, self.row, self.resumed = kept["figures"], kept["row"], True
        self.best = kept.get("best", {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = True
        self._continue_curves(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that was killed after its last step trains no further, and so has no on_train_start."""
        if not self.started:
            self._continue_curves(trainer)

    def _continue_curves(self, trainer: Trainer) -> None:
        """Remove the rows of steps that will be repeated, and add the checkpoint's `row` if it is missing."""
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
        """Correct Lightning's count of steps, in which a step with a validation counts twice after a resume."""
        if self.resumed:
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
            self.resumed = False


def shown(trainer: Trainer) -> list[str]:
    """Names of the figures of the progress bar, in its order."""
    return [name for name in trainer.progress_bar_metrics if name in trainer.callback_metrics]


def better(name: str, before: Best, now: tuple[float, int]) -> Best:
    """The better of both; `before` for NaN, and for a figure of which SIGNS does not say what is better."""
    signs = [sign for sign, names in SIGNS.items() if name.startswith("val/") and any(n in name for n in names)]
    if not signs or math.isnan(now[0]):
        return before
    return now if before[0] is None or signs[0] * now[0] > signs[0] * before[0] else before


def pending_row(trainer: Trainer) -> dict[str, int | float]:
    """The figures that Lightning will log for the present step after the callbacks, which write checkpoints.

    A run that was killed between the two resumes with the next step, and would lack that row.
    """
    loop = trainer.fit_loop.epoch_loop
    batches: Any = loop.batch_progress.total
    connector = trainer._logger_connector  # private: nothing public has the pending figures
    if batches.processed == batches.completed or not connector.should_update_logs:
        return {}
    figures = {name: float(value) for name, value in connector.metrics["log"].items()}
    return figures and {"epoch": trainer.current_epoch, **figures, "step": loop._batches_that_stepped}


def is_same(row: Row, other: Row) -> bool:
    """Whether a row of the file is of `other`'s step and has a value for each of its figures."""
    return int(str(row["step"])) == other["step"] and all(row.get(name) for name in other)
