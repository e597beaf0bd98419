"""Two ways of doing the same, timed in turns in one process; and what a claim's file needs to be run by itself."""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from open_kandinsky.core import files

ROOT = Path(__file__).parents[1]
Entry = dict[str, Any]
Claims = Callable[["Effort"], Iterator[Entry]]


class Effort(NamedTuple):
    """How much a benchmark may do. `quick` shows that it runs: its sizes are small and its figures mean nothing."""

    repeats: int
    quick: bool


def compared(
    claim: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    goal: float | None,
    effort: Effort,
    error: Callable[[Any, Any], float] | None = None,
) -> Entry:
    """Both after one run that does not count, then in turns; `spread` is of the turns' ratios, over their median.

    `error` is of what that first run of each gave.
    """
    first = ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(effort.repeats)]
    ours_s, theirs_s = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [b / a for a, b in pairs]
    spread = (max(ratios) - min(ratios)) / statistics.median(ratios)
    entry = {"claim": claim, "ours_s": ours_s, "theirs_s": theirs_s, "ratio": theirs_s / ours_s, "goal": goal}
    return entry | {"spread": spread} | ({"error": error(*first)} if error else {})


def alone(claim: str, **figures: Any) -> Entry:
    """A figure that is compared with nothing."""
    return dict.fromkeys(("ours_s", "theirs_s", "ratio", "goal", "spread")) | {"claim": claim} | figures


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return waited() - start


def waited() -> float:
    """The time when what was asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def where() -> Entry:
    """This machine and this commit."""
    commit = git("rev-parse", "--short=12", "HEAD")
    aside = [":!benchmarks/results.json", ":!*.md"]  # what a run of many claims writes, and pages
    changed = git("status", "--porcelain", "--", ".", *aside)
    return {"machine": machine(), "commit": f"{commit}-dirty" if changed else commit}


def git(*asked: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *asked], capture_output=True, text=True).stdout.strip()


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


HEADER = f"{'claim':72} {'ours, s':>9} {'theirs, s':>9} {'ratio':>7} {'goal':>6} {'spread':>7}"


def row(entry: Entry) -> str:
    """One line of the table; figures of its own follow."""
    columns = {"ours_s": "9.3f", "theirs_s": "9.3f", "ratio": "6.2f", "goal": "6g", "spread": "6.0%"}
    widths = {"ours_s": 9, "theirs_s": 9, "ratio": 7, "goal": 6, "spread": 7}
    shown = {key: "" if entry[key] is None else format(entry[key], form) for key, form in columns.items()}
    shown["ratio"] += "x" if shown["ratio"] else ""
    cells = " ".join(shown[key].rjust(width) for key, width in widths.items())
    more = {key: value for key, value in entry.items() if key not in {*columns, "claim", "machine", "commit", "of"}}
    figures = "  " + ", ".join(f"{key} {shortened(value)}" for key, value in more.items()) if more else ""
    return f"{entry['claim']:72} {cells}{figures}"


def shortened(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(claims: Claims, about: str | None) -> None:
    """What each file of claims/ runs: the table on the terminal, and the entries to --json."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the entries to this file")
    parser.add_argument("--quick", action="store_true", help="only see that it runs: the figures mean nothing")
    args = parser.parse_args()
    torch.set_num_threads(1 if args.quick else 2)  # a quick one has another beside it
    effort = Effort(repeats=1, quick=True) if args.quick else Effort(repeats=7, quick=False)
    print(HEADER, flush=True)
    entries = []
    for entry in claims(effort):
        entries.append(entry | where())
        print(row(entries[-1]), flush=True)
        if args.json:  # as it comes: one that is stopped has what it measured
            files.write(args.json, json.dumps(entries, indent=2) + "\n")
