"""Several evaluations side by side: the paper's Table 3, and the curve of FID over CLIP score that guidance draws.

Each run of a sweep is a folder with a metrics.json; the page is made of all that there are, and made anew as more come.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from open_kandinsky.core.errors import UserError
from open_kandinsky.evaluation.coco_report import TABLE_3, shown
from open_kandinsky.evaluation.figures import tradeoff
from open_kandinsky.evaluation.report import METRICS, Section, figure, number, page, paragraph, table, write_html

PAGE = "comparison.html"
COLUMNS = ("protocol", "pictures", "prior", "prior_scale", "scale", "steps", "sampler")
PAPER_NOTE = (
    "The paper's numbers, under a protocol that it does not tell in full. Its guidance scale was chosen on a curve."
)


def compare(folder: Path) -> Path:
    """Write the page of all runs below `folder`; returns its path. ValueError where there are none."""
    runs = found(folder)
    if not runs:
        raise UserError(f"{folder}: no {METRICS} below it; nothing to compare")
    write_html(folder / PAGE, page_of(runs))
    return folder / PAGE


def found(folder: Path) -> dict[str, dict[str, Any]]:
    """metrics.json of each COCO run, by its folder below `folder`, in the order of names."""
    paths = sorted(folder.rglob(METRICS))
    read = {str(path.parent.relative_to(folder)): json.loads(path.read_text(encoding="utf-8")) for path in paths}
    return {name: run for name, run in read.items() if "prior" in run}


def page_of(runs: Mapping[str, Mapping[str, Any]]) -> str:
    sections = [Section("Runs", runs_table(runs))]
    if curve := curves(runs):
        told = "A point for each guidance scale, joined in their order. Low and to the right is better."
        sections.append(Section("FID and CLIP score", figure(curve, told)))
    return page("Systems compared", [*sections, Section("The paper's Table 3", paragraph(PAPER_NOTE) + table_3(runs))])


def table_3(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Published values, and beside them of our runs with the same prior the one of least FID."""
    header = ["System", "FID-30K", "CLIP score", "Ours: FID", "CLIP score", "Run"]
    rows = [[row.model, number(row.fid), number(row.clip_score), *best(runs, kind)] for kind, row in TABLE_3.items()]
    return table(header, rows)


def best(runs: Mapping[str, Mapping[str, Any]], kind: str) -> list[str]:
    mine = {name: run["metrics"] for name, run in runs.items() if kind_of(run) == kind and "fid" in run["metrics"]}
    if not mine:
        return ["–", "–", ""]
    name = min(mine, key=lambda name: mine[name]["fid"])
    return [number(mine[name]["fid"]), number(first(mine[name], ("clip_score",))), name]


def kind_of(run: Mapping[str, Any]) -> str:
    return f"{run['prior']}, quantised" if run["drawn_with"]["quantised_latents"] else run["prior"]


def runs_table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each run. What is the same in all of them is said once above it, so that the numbers have room."""
    chosen = {name: told(run) for name, run in runs.items()}
    varying = [column for column in COLUMNS if len({row[column] for row in chosen.values()}) > 1]
    same = [f"{column} {next(iter(chosen.values()))[column]}" for column in COLUMNS if column not in varying]
    names = list(dict.fromkeys(name for run in runs.values() for name in shown(run["metrics"])))
    rows = [
        [name, *(chosen[name][column] for column in varying), *(number(run["metrics"].get(one)) for one in names)]
        for name, run in runs.items()
    ]
    return paragraph(f"In all of them: {', '.join(same)}.") * bool(same) + table(["Run", *varying, *names], rows)


def told(run: Mapping[str, Any]) -> dict[str, str]:
    """What a run was asked for, by COLUMNS."""
    found = {"protocol": run["protocol"], "pictures": number(run["n"]), "prior": run["prior"], **run["drawn_with"]}
    return {column: str(found.get(column, "–")) for column in COLUMNS}


def curves(runs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """As SVG: a line for each prior through its runs of one number of pictures; None where no line has two points."""
    points = defaultdict(list)
    for run in runs.values():
        numbers, scale = run["metrics"], run["drawn_with"].get("scale")
        distance, score = first(numbers, ("fid", "fid_small_n", "frechet")), first(numbers, ("clip_score",))
        if scale is not None and distance is not None and score is not None:
            points[f"{run['prior']}, {run['n']:,} pictures"].append((scale, score, distance))
    several = {name: sorted(line) for name, line in points.items() if len(line) > 1}
    lines = {name: [(f"{scale:g}", *point) for scale, *point in line] for name, line in several.items()}
    return tradeoff(lines, x="CLIP score", y="Frechet distance") if lines else None


def first(numbers: Mapping[str, float], stems: Sequence[str]) -> float | None:
    """The first number that is called so, verified or not."""
    bare = {name.removeprefix("unverified_"): value for name, value in shown(numbers).items()}
    return next((value for stem in stems for name, value in bare.items() if name.startswith(stem)), None)
