"""A tally of what was read: how many samples, which of them could not be used and why, and which were not wanted."""

from dataclasses import asdict, dataclass, field
from typing import Any

from open_kandinsky.core.errors import UserError
from open_kandinsky.core.secrets import masked

FILTERED = "filtered out: "  # how the reason of a sample begins that is in order, and was not asked for
KEPT_KEYS = 20
JUDGED_FROM = 50


@dataclass
class Reason:
    """One way to be left out: how often, the first keys, and the shard and message of the first."""

    shard: str
    detail: str
    count: int = 0
    keys: list[str] = field(default_factory=list)

    def add(self, count: int, keys: list[str]) -> None:
        self.count += count
        self.keys = (self.keys + keys)[:KEPT_KEYS]


class SampleStats:
    """A tally of samples: how many were seen, which could not be used, and which were filtered out.

    Remarks are about shards, not samples: each shard counts once, whoever reads it and however often.
    """

    def __init__(self, *, max_bad_share: float) -> None:
        self.max_bad_share = max_bad_share
        self.seen = 0
        self.reasons: dict[str, Reason] = {}
        self.remarks: dict[str, set[str]] = {}

    @property
    def filtered(self) -> int:
        return sum(reason.count for name, reason in self.reasons.items() if name.startswith(FILTERED))

    @property
    def bad(self) -> int:
        return sum(reason.count for reason in self.reasons.values()) - self.filtered

    @property
    def clean(self) -> bool:
        """Whether there is nothing to report."""
        return not self.reasons and not self.remarks

    def good(self) -> None:
        """Counts a sample that can be used."""
        self.seen += 1

    def add(self, reason: str, *, key: str, shard: str, detail: str = "", count: int = 1) -> None:
        """Counts samples (or a tar) that are left out. Raises ValueError once too many of at least 50 are bad."""
        self.seen += count
        self.reasons.setdefault(reason, Reason(masked(shard), masked(detail))).add(count, [masked(key)])
        if self.seen - self.filtered >= JUDGED_FROM:
            self.check()

    def remark(self, reason: str, *, shard: str) -> None:
        """Notes what is amiss with a shard whose samples can be used all the same."""
        self.remarks.setdefault(reason, set()).add(masked(shard))

    def merge(self, other: "SampleStats") -> None:
        """Adds the tally of another process."""
        self.seen += other.seen
        for name, reason in other.reasons.items():
            self.reasons.setdefault(name, Reason(reason.shard, reason.detail)).add(reason.count, reason.keys)
        for name, shards in other.remarks.items():
            self.remarks.setdefault(name, set()).update(shards)

    def check(self) -> None:
        """Raises ValueError, with the report, where too many of the samples that no filter took out are bad."""
        if self.bad > self.max_bad_share * (self.seen - self.filtered):
            raise UserError(
                f"{self.report()}\nthat is more than max_bad_share={self.max_bad_share}: mend the shards, or raise it"
            )

    def report(self) -> str:
        """One line a reason: how many, the first keys, and what was wrong with the first."""
        aside = f", {self.filtered} are filtered out" if self.filtered else ""
        lines = [f"{self.bad} of {self.seen} samples cannot be used{aside}"]
        for name, reason in self.reasons.items():
            keys = ", ".join(reason.keys) + (" ..." if reason.count > len(reason.keys) else "")
            lines.append(f"  {name}: {reason.count} ({keys}); first in {reason.shard} {reason.detail}".rstrip())
        for name, shards in self.remarks.items():
            first = ", ".join(sorted(shards)[:KEPT_KEYS]) + (" ..." if len(shards) > KEPT_KEYS else "")
            lines.append(f"  {name}: {len(shards)} shard(s) ({first}); their samples are used all the same")
        return "\n".join(lines)

    def plain(self) -> dict[str, Any]:
        """All of it as numbers, strings, lists and dicts, for a checkpoint."""
        reasons = {name: asdict(reason) for name, reason in self.reasons.items()}
        return {"seen": self.seen, "reasons": reasons, "remarks": {k: sorted(v) for k, v in self.remarks.items()}}


def stats_from_plain(plain: dict[str, Any], *, max_bad_share: float) -> SampleStats:
    """The tally that `plain` was made of."""
    tally = SampleStats(max_bad_share=max_bad_share)
    tally.seen = plain["seen"]
    tally.reasons = {name: Reason(**reason) for name, reason in plain["reasons"].items()}
    tally.remarks = {name: set(shards) for name, shards in plain["remarks"].items()}
    return tally
