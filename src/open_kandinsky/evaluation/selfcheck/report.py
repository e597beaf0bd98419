"""What a self-check came to: a table for people, a row at a time, and a file for programs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from open_kandinsky.evaluation.report import write_json
from open_kandinsky.evaluation.selfcheck.check import DIFFERS, NOT_RUN, OK, Check, Result, by_hand
from open_kandinsky.evaluation.selfcheck.golden import Measured
from open_kandinsky.evaluation.versions import commit, machine, versions

FILE = "selfcheck.json"
HEADER = ("check", "expected", "measured", "difference", "verdict")
WIDTHS = (12, 12, 10)  # of expected, measured and difference


def header(checks: Sequence[Check]) -> str:
    return row(HEADER, checks)


def line(result: Result, checks: Sequence[Check]) -> str:
    """One row of the table; `checks` are all of them, for the width of their names."""
    measured, golden = result.measured, result.check.golden
    verdict = result.verdict if result.reason is None else f"{result.verdict}: {' '.join(result.reason.split())}"
    apart = None if measured is None else golden.difference(measured)
    cells = (short(golden.value), short(measured), "-" if apart is None else f"{apart:+.2g}")
    return row((result.check.name, *cells, verdict), checks)


def row(cells: Sequence[str], checks: Sequence[Check]) -> str:
    widths = (max(len(check.name) for check in checks), *WIDTHS)
    padded = [f"{cell:{width}}" for cell, width in zip(cells, widths, strict=False)]
    return "  ".join([*padded, cells[-1]])


def short(value: Measured | None) -> str:
    """A number to four places, the first twelve characters of a hash, and a dash for nothing."""
    if value is None:
        return "-"
    return value[:12] if isinstance(value, str) else f"{value:.4f}"


def passed(results: Sequence[Result]) -> bool:
    """Whether everything that was asked for ran, and agrees."""
    return bool(results) and all(result.verdict == OK for result in results)


def found(results: Sequence[Result]) -> dict[str, Any]:
    """All of it, as plain values."""
    checks = [entry(result) for result in results]
    return {"passed": passed(results), "checks": checks, "hash_not_published": unpublished(results)}


def entry(result: Result) -> dict[str, Any]:
    golden = result.check.golden
    return {
        "check": result.check.name,
        "expected": golden.value,
        "tolerance": golden.tolerance,
        "measured": result.measured,
        "difference": None if result.measured is None else golden.difference(result.measured),
        "verdict": result.verdict,
        "reason": result.reason,
        "source": golden.source,
    }


def unpublished(results: Sequence[Result]) -> dict[str, str]:
    """SHA-256 of what was taken as it came, of the checks that ran."""
    ran = [result.check for result in results if result.verdict != NOT_RUN]
    return {file: sha256 for check in ran for file, sha256 in check.unpublished().items()}


def summary(results: Sequence[Result], about: Mapping[str, Any]) -> str:
    """How many came out how, the files that were taken as they came, and those that are not at hand."""
    counts = Counter(result.verdict for result in results)
    told = f"{counts[OK]} of {len(results)} agree, {counts[DIFFERS]} differ, {counts[NOT_RUN]} were not run"
    taken = [f"hash not published: {file}, SHA-256 {sha256}" for file, sha256 in about["hash_not_published"].items()]
    absent = by_hand([result.check for result in results if result.verdict == NOT_RUN])
    return "\n".join([told, *taken, *(["not at hand:", *absent] if absent else [])])


def write(path: Path, about: Mapping[str, Any]) -> None:
    write_json(path, {**about, "versions": versions(), "made": {"commit": commit(), "machine": machine()}})
