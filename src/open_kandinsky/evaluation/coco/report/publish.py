"""What an evaluation leaves: metrics.json for programs, report.html for people, and one line for the terminal."""

import io
import json
from dataclasses import dataclass
from functools import cached_property
from textwrap import shorten
from typing import Any

from PIL import Image

from open_kandinsky.core.leases import share
from open_kandinsky.evaluation.coco.report import page
from open_kandinsky.evaluation.coco.report.board import Boarded
from open_kandinsky.evaluation.coco.report.caveats import caveats
from open_kandinsky.evaluation.coco.run import Run, Scored, about
from open_kandinsky.evaluation.figures import contact_sheet
from open_kandinsky.evaluation.report import METRICS, write_html, write_json
from open_kandinsky.evaluation.scoring import scores
from open_kandinsky.evaluation.versions import commit, versions

REPORT = "report.html"
SHOWN = 40
LONGEST = 160  # letters of a caption on a sheet


def publish(run: Run, project: str | None) -> str:
    """Write both files, where they are not of these very numbers already; returns the headline."""
    share([Published(run)], run.leases("report"), seen=lambda: None)
    found = json.loads((run.out / METRICS).read_text(encoding="utf-8"))
    if project is not None:
        share([Boarded(run.out, project, found, run.out / REPORT)], run.leases("wandb"), seen=lambda: None)
    return f"{headline(found)}\nreport: {run.out / REPORT}"


@dataclass(frozen=True)
class Published:
    """The two files of one run. They are derived, and written anew where more has been scored since."""

    run: Run
    name: str = "report"

    def done(self) -> bool:
        path = self.run.out / METRICS
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {name: found.get(name) for name in self.numbers} == json.loads(json.dumps(self.numbers))

    def do(self) -> None:
        metrics = {**self.numbers, "versions": versions(), "made": made(self.run)}
        write_html(self.run.out / REPORT, page.page_of(metrics, random_png(self.run), worst_png(self.run)))
        write_json(self.run.out / METRICS, metrics)

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """All that does not depend on who made it, and when."""
        run = self.run
        own, *others = [Scored(run, protocol) for protocol in run.protocols]
        return {
            "protocol": run.protocol.name,
            "metrics": own.read(),
            "also": {other.protocol.name: other.read() for other in others},
            "warnings": caveats(run),
            **about(run),
        }


def headline(found: dict[str, Any]) -> str:
    """One line: FID by its own name, or whatever was computed first, with what it is of."""
    shown = {name: value for name, value in found["metrics"].items() if "_se" not in name and "_std" not in name}
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    return f"{found['protocol']}, {found['n']:,} pictures against {found['n_real']:,}: {numbers}"


def made(run: Run) -> dict[str, Any]:
    """By what and how long: the part that another run of the same has otherwise."""
    markers = run.samples.markers(run.n)
    return {
        "commit": commit(),
        "machines": sorted({marker["machine"] for marker in markers}),
        "seconds_drawing": sum(marker["seconds"] for marker in markers),
    }


def random_png(run: Run) -> bytes:
    """The first pictures: the list is in random order already."""
    return sheet_of(run, list(range(min(SHOWN, run.n))))


def worst_png(run: Run) -> bytes | None:
    """Those that agree least with their captions, by the first CLIP; None where none was asked."""
    for score in run.scores.values():
        if score.compute is scores.similarity:
            pair = next(iter(run.protocol.extractors(score.reads, run.subject).values()))
            features = run.both(run.protocol, pair)[0].gathered()
            return sheet_of(run, scores.worst(features, SHOWN // 2))
    return None


def sheet_of(run: Run, rows: list[int]) -> bytes:
    wanted = {block.index: block for block in run.samples.blocks for row in rows if row in block.rows}
    found: dict[int, Image.Image] = {}
    for block in wanted.values():
        found |= dict(zip(block.rows, run.samples.pictures(block), strict=True))
    for image in found.values():
        image.thumbnail((256, 256))
    data = io.BytesIO()
    texts = [shorten(run.captions[row].text, LONGEST, placeholder=" …") for row in rows]
    contact_sheet([found[row] for row in rows], texts, columns=8).save(data, "png")
    return data.getvalue()
