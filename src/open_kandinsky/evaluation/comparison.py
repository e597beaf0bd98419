"""Several evaluations on one page: the paper's Table 3 beside ours, and FID over CLIP score as guidance changes.

Each run of a sweep is a folder with a metrics.json. The page shows every run there is, and is written anew as more end.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.evaluation.coco_report import TABLE_3, without_errors
from open_kandinsky.evaluation.figures import tradeoff
from open_kandinsky.evaluation.report import METRICS, number, page

PAGE = "comparison.html"
SETTINGS = ("protocol", "pictures", "prior", "prior_scale", "scale", "steps", "sampler")
DISTANCES = ("fid", "fid_small_n", "frechet")  # what a run's distance may be called, the best of them first


def compare(folder: Path) -> Path:
    """Write the page of all COCO runs below `folder`; returns its path. UserError where there are none."""
    paths = sorted(folder.rglob(METRICS))
    results = {str(path.parent.relative_to(folder)): json.loads(path.read_text(encoding="utf-8")) for path in paths}
    runs = {name: result for name, result in results.items() if "prior" in result}
    if not runs:
        raise UserError(f"{folder}: no {METRICS} below it; nothing to compare")
    files.write(folder / PAGE, comparison_page(runs))
    return folder / PAGE


def comparison_page(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, from metrics.json of each run by its folder's name.

    A setting that is the same in all runs is said once above their table, so that the numbers have room.
    """
    settings = {name: settings_of(run) for name, run in runs.items()}
    varying = [key for key in SETTINGS if len({row[key] for row in settings.values()}) > 1]
    first = next(iter(settings.values()))
    metrics = list(dict.fromkeys(name for run in runs.values() for name in without_errors(run["metrics"])))
    return page(
        "comparison.html",
        same=[f"{key} {first[key]}" for key in SETTINGS if key not in varying],
        columns=[*varying, *metrics],
        runs=[
            [name, *(settings[name][key] for key in varying), *(number(run["metrics"].get(key)) for key in metrics)]
            for name, run in runs.items()
        ],
        curve=curve(runs),
        table_3=[
            [row.model, number(row.fid), number(row.clip_score), *best(runs, kind)] for kind, row in TABLE_3.items()
        ],
    )


def settings_of(run: Mapping[str, Any]) -> dict[str, str]:
    """The values of SETTINGS that a run drew with."""
    values = {"protocol": run["protocol"], "pictures": number(run["n"]), "prior": run["prior"], **run["drawn_with"]}
    return {key: str(values.get(key, "–")) for key in SETTINGS}


def best(runs: Mapping[str, Mapping[str, Any]], kind: str) -> list[str]:
    """FID, CLIP score and name of the run with the least FID among those of one kind of prior."""
    fid = {
        name: run["metrics"]["fid"] for name, run in runs.items() if kind_of(run) == kind and "fid" in run["metrics"]
    }
    if not fid:
        return ["–", "–", ""]
    name = min(fid, key=lambda name: fid[name])
    return [number(fid[name]), number(first_metric(runs[name]["metrics"], "clip_score")), name]


def kind_of(run: Mapping[str, Any]) -> str:
    """A run's row in TABLE_3."""
    return f"{run['prior']}, quantised" if run["drawn_with"]["quantised_latents"] else run["prior"]


def curve(runs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """As SVG: a line for each prior through its runs of one number of pictures; None where no line has two points."""
    points = defaultdict(list)
    for run in runs.values():
        metrics, scale = run["metrics"], run["drawn_with"].get("scale")
        distance, score = first_metric(metrics, *DISTANCES), first_metric(metrics, "clip_score")
        if scale is not None and distance is not None and score is not None:
            points[f"{run['prior']}, {run['n']:,} pictures"].append((scale, score, distance))
    lines = {
        name: [(f"{scale:g}", *point) for scale, *point in sorted(line)]
        for name, line in points.items()
        if len(line) > 1
    }
    return tradeoff(lines, x="CLIP score", y="Frechet distance") if lines else None


def first_metric(metrics: Mapping[str, float], *stems: str) -> float | None:
    """The first metric whose name begins with one of `stems`, verified or not; earlier stems come first."""
    values = {name.removeprefix("unverified_"): value for name, value in without_errors(metrics).items()}
    return next((value for stem in stems for name, value in values.items() if name.startswith(stem)), None)
