"""The quickstart's report: what its parts measured, as report.json, report.html and samples.png."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_kandinsky.core import files
from open_kandinsky.evaluation import figures
from open_kandinsky.evaluation.report import shapes_page, write_html, write_json
from open_kandinsky.evaluation.shapes import called
from open_kandinsky.evaluation.versions import commit, machine, versions


@dataclass(frozen=True)
class Part:
    """One part of a quickstart: what it is for, how long it took, and the process's peak memory when it ended."""

    purpose: str
    seconds: float
    peak_memory_gb: float


CURVES = {
    "clip": {"train/loss": "contrastive loss"},
    "movq": {"train/loss": "autoencoder's loss", "train/adversary": "adversary's loss"},
    "prior": {"train/loss": "diffusion prior's loss"},
    "prior_linear": {"train/loss": "linear prior's loss"},
    "prior_residual": {"train/loss": "residual prior's loss"},
    "decoder": {"train/loss": "decoder's loss"},
}


def report_on(out: Path, parts: Mapping[str, Part], *, seed: int) -> Path:
    """Write the three files to `out`; returns the page's path."""
    report = summary(json.loads((out / "scores" / "metrics.json").read_text())["metrics"])
    for name, part in parts.items():
        if (prior := report["priors"].get(called(name))) is not None:
            prior["seconds"] = part.seconds
    report |= {
        "seconds": {name: part.seconds for name, part in parts.items()},
        "parts": {name: part.purpose for name, part in parts.items()},
        "peak_memory_gb": max(part.peak_memory_gb for part in parts.values()),
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "seed": seed,
        "command": "make quickstart",
    }
    samples = (out / "scores" / "samples.png").read_bytes()
    files.write(out / "samples.png", samples)
    drawn = {title: figures.curves({title: series}, title) for title, series in curves(out, parts).items()}
    write_json(out / "report.json", report)
    write_html(out / "report.html", shapes_page(report, samples, drawn))
    return out / "report.html"


def summary(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The headline numbers under the names that other programs read, and all of the metrics beside them."""
    own = next(iter(metrics["priors"].values()))
    return {
        "caption_accuracy": metrics["accuracy"]["seen"]["all"],
        "caption_accuracy_heldout": metrics["accuracy"]["unseen"]["all"],
        "caption_accuracy_never": metrics["accuracy"]["never"]["all"],
        "caption_accuracy_no_guidance": metrics["accuracy_no_guidance"]["all"],
        "oracle_real": metrics["oracle_real"]["unseen"],
        "oracle_reconstruction": metrics["oracle_reconstruction"]["seen"],
        "oracle": {name: metrics[name] for name in ("oracle_real", "oracle_reconstruction")},
        "reconstruction": metrics["reconstruction"]["seen"],
        "accuracy": metrics["accuracy"],
        "priors": metrics["priors"],
        "text_cosine_to_image": metrics["text_cosine_to_image"],
        "clip_score": own["clip_score"],
        "frechet_distance": own["frechet_distance"],
    }


def curves(out: Path, parts: Mapping[str, Part]) -> dict[str, tuple[list[int], list[float]]]:
    """Title -> (steps, values), from each part's metrics.csv; a run too short to have logged has no curve."""
    found = {}
    for name, titles in CURVES.items():
        path = out / name / "metrics.csv"
        rows = list(csv.DictReader(path.read_text().splitlines())) if name in parts and path.is_file() else []
        for column, title in titles.items():
            if points := [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]:
                found[title] = ([step for step, _ in points], [value for _, value in points])
    return found
