"""What somebody has published, and whether what is measured here agrees with it.

A check: something published, what has to be at hand to measure it again, and the measurement.

What a self-check came to: a table for people, a row at a time, and a file for programs.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from open_kandinsky.core.errors import UserError
from open_kandinsky.evaluation.report import commit, machine, versions, write_json
from open_kandinsky.evaluation.samples import exactly

Measured = float | str


@runtime_checkable
class Golden(Protocol):
    @property
    def value(self) -> Measured: ...
    @property
    def tolerance(self) -> float | None: ...
    @property
    def source(self) -> str:
        """Who published it, and where."""
        ...

    def agrees(self, measured: Measured) -> bool: ...
    def difference(self, measured: Measured) -> float | None:
        """None where there is no more to say than whether they agree."""
        ...


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number. `tolerance` is how far from it another machine may come out; what is not a number never agrees."""

    value: float
    tolerance: float
    source: str

    def agrees(self, measured: Measured) -> bool:
        return abs(self.difference(measured)) <= self.tolerance

    def difference(self, measured: Measured) -> float:
        assert isinstance(measured, int | float)
        return measured - self.value


@dataclass(frozen=True, kw_only=True)
class PublishedHash:
    """A SHA-256, or its beginning where no more of it is published."""

    value: str
    source: str
    tolerance: None = None

    def __post_init__(self) -> None:
        assert self.value, "any file agrees with no hash"

    def agrees(self, measured: Measured) -> bool:
        return str(measured).startswith(self.value)

    def difference(self, measured: Measured) -> None:
        return None


OK, DIFFERS, NOT_RUN = "ok", "differs", "not run"


class Wanted(NamedTuple):
    """A file that is not at hand: where it goes, where it comes from, and how to know that it is the one."""

    path: Path
    url: str
    known_by: str


@runtime_checkable
class Check(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def golden(self) -> Golden: ...
    def wanted(self) -> list[Wanted]:
        """What it reads that is not at hand."""
        ...

    def fetch(self) -> None:
        """Bring what is wanted, and look whether all of it can be read.

        ConnectionError where there is no way to a server, ValueError for all else that a person can mend.
        """
        ...

    def measure(self) -> Measured:
        """After `fetch`."""
        ...

    def unpublished(self) -> Mapping[str, str]:
        """SHA-256, as found, of the files that nobody has published a hash of; after `fetch`."""
        ...


@dataclass(frozen=True)
class CheckResult:
    """`measured` is None where it was not, and `reason` says why."""

    check: Check
    measured: Measured | None
    reason: str | None

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return NOT_RUN
        return OK if self.check.golden.agrees(self.measured) else DIFFERS


class Hindrance(NamedTuple):
    """Why a check cannot run."""

    reason: str
    offline: bool  # for want of a network


def run(checks: Sequence[Check], *, seen: Callable[[CheckResult], object]) -> list[CheckResult]:
    """Fetch for all of them, then measure one after another; `seen` is given each result as it comes.

    ValueError, with all that has to be put where, if there is no network and nothing can be measured without.
    """
    found = [hindrance(check) for check in checks]
    if None not in found and any(one is not None and one.offline for one in found):
        raise UserError(no_network(checks, [one for one in found if one is not None]))
    exactly()
    results = []
    for check, stopped in zip(checks, found, strict=True):
        results.append(
            CheckResult(check, None, stopped.reason) if stopped else CheckResult(check, check.measure(), None)
        )
        seen(results[-1])
    return results


def hindrance(check: Check) -> Hindrance | None:
    try:
        check.fetch()
    except ConnectionError as error:
        return Hindrance(f"no network: {error}", True)
    except ValueError as error:
        return Hindrance(str(error), False)
    return None


def no_network(checks: Sequence[Check], found: Sequence[Hindrance]) -> str:
    others = [f"{check.name}: {one.reason}" for check, one in zip(checks, found, strict=True) if not one.offline]
    first = next(one.reason for one in found if one.offline)
    return "\n".join(
        ["eval-selfcheck needs a network (or these files put here by hand); nothing was checked"]
        + [*by_hand(checks), *others, first]
    )


def by_hand(checks: Sequence[Check]) -> list[str]:
    """What to put where, each file once."""
    absent = dict.fromkeys(wanted for check in checks for wanted in check.wanted())
    return [f"  {url}\n    to {path} ({known_by})" for path, url, known_by in absent]


def hashed(sha256: str | None) -> str:
    return f"SHA-256 {sha256}" if sha256 else "hash not published"


FILE = "selfcheck.json"
HEADER = ("check", "expected", "measured", "difference", "verdict")
WIDTHS = (12, 12, 10)  # of expected, measured and difference


def header(checks: Sequence[Check]) -> str:
    return row(HEADER, checks)


def line(result: CheckResult, checks: Sequence[Check]) -> str:
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


def passed(results: Sequence[CheckResult]) -> bool:
    """Whether everything that was asked for ran, and agrees."""
    return bool(results) and all(result.verdict == OK for result in results)


def found(results: Sequence[CheckResult]) -> dict[str, Any]:
    """All of it, as plain values."""
    checks = [entry(result) for result in results]
    return {"passed": passed(results), "checks": checks, "hash_not_published": unpublished(results)}


def entry(result: CheckResult) -> dict[str, Any]:
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


def unpublished(results: Sequence[CheckResult]) -> dict[str, str]:
    """SHA-256 of what was taken as it came, of the checks that ran."""
    ran = [result.check for result in results if result.verdict != NOT_RUN]
    return {file: sha256 for check in ran for file, sha256 in check.unpublished().items()}


def summary(results: Sequence[CheckResult], about: Mapping[str, Any]) -> str:
    """How many came out how, the files that were taken as they came, and those that are not at hand."""
    counts = Counter(result.verdict for result in results)
    told = f"{counts[OK]} of {len(results)} agree, {counts[DIFFERS]} differ, {counts[NOT_RUN]} were not run"
    taken = [f"hash not published: {file}, SHA-256 {sha256}" for file, sha256 in about["hash_not_published"].items()]
    absent = by_hand([result.check for result in results if result.verdict == NOT_RUN])
    return "\n".join([told, *taken, *(["not at hand:", *absent] if absent else [])])


def write(path: Path, about: Mapping[str, Any]) -> None:
    write_json(path, {**about, "versions": versions(), "made": {"commit": commit(), "machine": machine()}})
