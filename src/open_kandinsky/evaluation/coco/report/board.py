"""The numbers, the pictures and the page of an evaluation on Weights & Biases."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_kandinsky.core import files
from open_kandinsky.evaluation.hashes import json_sha256

MARK = "wandb.json"


@dataclass(frozen=True)
class Boarded:
    """One evaluation, logged once by one process. Its run's id is a hash of all that decides it."""

    out: Path
    project: str
    found: Mapping[str, Any]  # metrics.json
    report: Path
    name: str = "wandb"

    @property
    def id(self) -> str:
        told = {name: value for name, value in self.found.items() if name not in ("made", "versions")}
        return json_sha256(told)[:16]

    def done(self) -> bool:
        path = self.out / MARK
        return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["id"] == self.id

    def do(self) -> None:
        import wandb

        about = {name: value for name, value in self.found.items() if name not in ("metrics", "also")}
        name = f"{self.found['protocol']}-{self.found['prior']}"
        told: dict[str, Any] = {"name": name, "config": about, "job_type": "evaluate"}
        with wandb.init(project=self.project, id=self.id, dir=str(self.out), resume="allow", **told) as run:
            run.log({**self.numbers(), "report": wandb.Html(self.report.read_text(encoding="utf-8"), inject=False)})
        files.write(self.out / MARK, json.dumps({"id": self.id, "project": self.project}))

    def numbers(self) -> dict[str, float]:
        """The protocol's own by their names, the others' behind theirs."""
        others = {f"{name}/{key}": x for name, numbers in self.found["also"].items() for key, x in numbers.items()}
        return {**self.found["metrics"], **others}
