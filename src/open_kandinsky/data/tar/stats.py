"""Statistics of samples: how many were read, which could not be used and why, and which were filtered out.

`SampleStats` counts and judges; too many bad samples end a training. `StreamStats` has one for each epoch of each
source that a stream reads. `ProcessStats` adds up the streams of a process and logs each epoch when it is over.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from open_kandinsky.core.errors import UserError
from open_kandinsky.core.secrets import masked

log = logging.getLogger(__name__)

Plain = dict[str, Any]
Epoch = tuple[int, int]  # source, epoch

FILTERED = "filtered out: "  # begins the reason of a sample that is in order, but not wanted
KEPT_KEYS = 20
MIN_JUDGED = 50


@dataclass
class Reason:
    """Why samples were left out: the shard and message of the first one, how many there are, and the first keys."""

    shard: str
    detail: str
    count: int = 0
    keys: list[str] = field(default_factory=list)

    def add(self, count: int, keys: list[str]) -> None:
        self.count += count
        self.keys = (self.keys + keys)[:KEPT_KEYS]


class SampleStats:
    """Counts of samples: seen, bad and filtered out, by reason.

    Remarks are about shards, not samples: a shard counts once, however many processes read it and however often.
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
        if self.seen - self.filtered >= MIN_JUDGED:
            self.check()

    def remark(self, reason: str, *, shard: str) -> None:
        """Notes a defect of a shard whose samples can be used all the same."""
        self.remarks.setdefault(reason, set()).add(masked(shard))

    def merge(self, other: "SampleStats") -> None:
        """Adds what another process has counted."""
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

    def plain(self) -> Plain:
        """Numbers, strings, lists and dicts, for a checkpoint."""
        reasons = {name: asdict(reason) for name, reason in self.reasons.items()}
        return {"seen": self.seen, "reasons": reasons, "remarks": {k: sorted(v) for k, v in self.remarks.items()}}


def stats_from_plain(plain: Plain, *, max_bad_share: float) -> SampleStats:
    """The inverse of `SampleStats.plain`."""
    stats = SampleStats(max_bad_share=max_bad_share)
    stats.seen = plain["seen"]
    stats.reasons = {name: Reason(**reason) for name, reason in plain["reasons"].items()}
    stats.remarks = {name: set(shards) for name, shards in plain["remarks"].items()}
    return stats


def merge_stats(plains: Iterable[Plain], max_bad_share: float) -> SampleStats:
    """The sum of several."""
    total = SampleStats(max_bad_share=max_bad_share)
    for plain in plains:
        total.merge(stats_from_plain(plain, max_bad_share=1.0))
    return total


def merge_epochs(counted: Sequence[Mapping[Epoch, Plain]], max_bad_share: float) -> dict[Epoch, SampleStats]:
    """The statistics of several streams or processes, added up epoch by epoch."""
    epochs = sorted({epoch for one in counted for epoch in one})
    return {e: merge_stats([one[e] for one in counted if e in one], max_bad_share) for e in epochs}


class StreamStats:
    """What one stream has counted in each epoch of each source.

    A stream meets bad samples before it uses good ones, so a part of an epoch is not judged alone.
    """

    def __init__(self) -> None:
        self.epochs: defaultdict[Epoch, SampleStats] = defaultdict(lambda: SampleStats(max_bad_share=1.0))

    def of(self, source: int, epoch: int) -> SampleStats:
        return self.epochs[source, epoch]

    def bad(self) -> int:
        """How many samples cannot be used, in all epochs together."""
        return sum(stats.bad for stats in self.epochs.values())

    def merged(self, max_bad_share: float) -> SampleStats:
        """All epochs together."""
        return merge_stats(self.plain().values(), max_bad_share)

    def drop_before(self, oldest: Sequence[int]) -> None:
        """Drops epochs that are over: those before `oldest`, which has one epoch for each source."""
        for source, epoch in list(self.epochs):
            if epoch < oldest[source]:
                del self.epochs[source, epoch]

    def plain(self) -> dict[Epoch, Plain]:
        """Their present values as lists, dicts and numbers."""
        return {epoch: stats.plain() for epoch, stats in self.epochs.items()}


class ProcessStats:
    """What all streams of one process have counted in open epochs; an epoch that is over is judged and logged.

    `before`: what was counted before this process began; `suffix` names the process in the log.
    """

    def __init__(self, *, before: Mapping[Epoch, Plain], streams: int, max_bad_share: float, suffix: str) -> None:
        self.streams: list[dict[Epoch, Plain]] = [dict(before), *({} for _ in range(streams))]
        self.max_bad_share, self.suffix = max_bad_share, suffix
        self.logged: dict[Epoch, str] = {}
        self.closed = SampleStats(max_bad_share=1.0)  # of epochs that are over

    def update(self, stream: int, stats: Mapping[Epoch, Plain]) -> None:
        """What a stream has counted in the epochs that it is in, or was in until now."""
        self.streams[stream + 1].update(stats)

    def open_epochs(self) -> dict[Epoch, SampleStats]:
        """All streams together."""
        return merge_epochs(self.streams, self.max_bad_share)

    def close_epochs(self, oldest: Sequence[int]) -> None:
        """Judges, logs and drops the epochs before `oldest`, one epoch a source. Raises UserError for too many bad."""
        for (source, epoch), total in self.open_epochs().items():
            if epoch < oldest[source]:
                total.check()
                self.log((source, epoch), total, "")
                self.closed.merge(total)
                for one in self.streams:
                    one.pop((source, epoch), None)

    def counts(self) -> dict[str, int]:
        """Numbers of samples since this process began, and in the epochs that it has resumed."""
        every = [self.closed, *self.open_epochs().values()]
        names = {"read": "seen", "skipped": "bad", "filtered_out": "filtered"}
        return {name: sum(getattr(stats, attribute) for stats in every) for name, attribute in names.items()}

    def log_open_epochs(self) -> None:
        """Logs the epochs that are not over, where something was counted since the last time."""
        for epoch, total in self.open_epochs().items():
            self.log(epoch, total, ", so far")

    def log(self, at: Epoch, total: SampleStats, state: str) -> None:
        if not total.clean and self.logged.get(at) != total.report():
            source, epoch = at
            log.warning(f"epoch {epoch} of source {source}{self.suffix}{state}: {total.report()}")
            self.logged[at] = total.report()
