"""Whether published pictures score here as published; `make eval-selfcheck` is this.

open-kandinsky selfcheck coco=data/coco
open-kandinsky selfcheck checks='[weights,cats,cmmd]' device=cuda

Needs a network for some GB of weights and a few pictures; what is on this machine already is not fetched again.
GigaGAN's pictures are put into place by hand. Exit code 0 where every chosen check ran and agrees, 1 where one differs
or was not run, 2 where none could run.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from open_kandinsky.config import compose
from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import lookup
from open_kandinsky.evaluation.report import commit, machine, versions, write_json
from open_kandinsky.evaluation.reproduce import DIFFERS, NOT_RUN, OK, Check, CheckResult, Value, by_hand, run

REPORT = "selfcheck.json"
COLUMNS = ("check", "expected", "measured", "difference", "verdict")
WIDTHS = (12, 12, 10)  # of the columns expected, measured and difference


def selfcheck(cfg: DictConfig) -> bool:
    """Print the table and write selfcheck.json to cfg.to; returns whether every check ran and agrees.

    ValueError for a check that does not exist, and where there is no network and nothing can be checked without.
    """
    checks = chosen_checks(cfg)
    width = max(len(check.name) for check in checks)
    results = []
    for result in run(checks):
        if not results:
            print(row(width, *COLUMNS))
        print(row(width, *cells(result)), flush=True)
        results.append(result)
    path, report = Path(cfg.to) / REPORT, summary(results)
    replaced = ", in place of an earlier one" if path.exists() else ""
    write_json(path, report)
    print(*closing_lines(results, report["hash_not_published"]), f"written: {path}{replaced}", sep="\n")
    return report["passed"]


def chosen_checks(cfg: DictConfig) -> list[Check]:
    """The checks that cfg.checks names; `weights` stands for several."""
    if not cfg.checks:
        raise UserError(f"checks=[]: nothing to check; there are {', '.join(cfg.known)}")
    for name in cfg.checks:
        lookup("checks", name, cfg.known)
    # As plain lists: OmegaConf would take our dataclasses for configs.
    built = [instantiate(cfg.known[name], _convert_="all") for name in cfg.checks]
    return [check for one in built for check in (one if isinstance(one, list) else [one])]


def row(width: int, *texts: str) -> str:
    """A line of the printed table, with a first column of `width` letters."""
    return "  ".join([*(f"{text:{n}}" for text, n in zip(texts, (width, *WIDTHS), strict=False)), texts[-1]])


def cells(result: CheckResult) -> tuple[str, ...]:
    """The texts of COLUMNS."""
    verdict = result.verdict if result.reason is None else f"{result.verdict}: {' '.join(result.reason.split())}"
    difference = "-" if result.difference is None else f"{result.difference:+.2g}"
    return result.check.name, short(result.check.value), short(result.measured), difference, verdict


def short(value: Value | None) -> str:
    """A number to four places, the first twelve characters of a hash, and a dash for None."""
    if value is None:
        return "-"
    return value[:12] if isinstance(value, str) else f"{value:.4f}"


def summary(results: Sequence[CheckResult]) -> dict[str, Any]:
    """The content of selfcheck.json. `hash_not_published` has the SHA-256 of downloads of which none is published."""
    entries = [
        {
            "check": result.check.name,
            "expected": result.check.value,
            "tolerance": result.check.tolerance,
            "measured": result.measured,
            "difference": result.difference,
            "verdict": result.verdict,
            "reason": result.reason,
            "source": result.check.source,
        }
        for result in results
    ]
    inputs = [part for result in results if result.verdict != NOT_RUN for part in result.check.measurement.inputs()]
    return {
        "passed": bool(results) and all(result.verdict == OK for result in results),
        "checks": entries,
        "hash_not_published": {file: sha256 for part in inputs for file, sha256 in part.unpublished().items()},
        "versions": versions(),
        "made": {"commit": commit(), "machine": machine()},
    }


def closing_lines(results: Sequence[CheckResult], unpublished: Mapping[str, str]) -> list[str]:
    """How many checks agree, the SHA-256 of files of which none is published, and the files that are missing."""
    counts = Counter(result.verdict for result in results)
    total = f"{counts[OK]} of {len(results)} agree, {counts[DIFFERS]} differ, {counts[NOT_RUN]} were not run"
    hashes = [f"hash not published: {file}, SHA-256 {sha256}" for file, sha256 in unpublished.items()]
    missing = by_hand([result.check for result in results if result.verdict == NOT_RUN])
    return [total, *hashes, *(["not at hand:", *missing] if missing else [])]


@compose.command("selfcheck")
def main(cfg: DictConfig) -> None:
    sys.exit(0 if selfcheck(cfg) else 1)


if __name__ == "__main__":
    main()
