"""The curves of a run, in metrics.csv."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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
