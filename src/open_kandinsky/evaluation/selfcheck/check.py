"""A check: something published, what has to be at hand to measure it again, and the measurement."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from open_kandinsky.core.errors import UserError
from open_kandinsky.evaluation.samples import exactly
from open_kandinsky.evaluation.selfcheck.golden import Golden, Measured

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
class Result:
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


def run(checks: Sequence[Check], *, seen: Callable[[Result], object]) -> list[Result]:
    """Fetch for all of them, then measure one after another; `seen` is given each result as it comes.

    ValueError, with all that has to be put where, if there is no network and nothing can be measured without.
    """
    found = [hindrance(check) for check in checks]
    if None not in found and any(one is not None and one.offline for one in found):
        raise UserError(no_network(checks, [one for one in found if one is not None]))
    exactly()
    results = []
    for check, stopped in zip(checks, found, strict=True):
        results.append(Result(check, None, stopped.reason) if stopped else Result(check, check.measure(), None))
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
