"""What could not be used, counted for each epoch of each source.

What all streams of a process have counted: joined, judged and logged epoch by epoch.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from open_kandinsky.data.tar.stats import SampleStats, stats_from_plain

Plain = dict[str, Any]
Epoch = tuple[int, int]  # source, epoch


class StreamStats:
    """A tally for each epoch of each source, judged by none: a stream meets bad samples before it uses good ones."""

    def __init__(self) -> None:
        self.tallies: defaultdict[Epoch, SampleStats] = defaultdict(lambda: SampleStats(max_bad_share=1.0))

    def __getitem__(self, epoch: Epoch) -> SampleStats:
        return self.tallies[epoch]

    def bad(self) -> int:
        """How many cannot be used, in all epochs together."""
        return sum(tally.bad for tally in self.tallies.values())

    def joined(self, max_bad_share: float) -> SampleStats:
        """All epochs in one."""
        return merge_stats(self.plain().values(), max_bad_share)

    def forget(self, before: Sequence[int]) -> None:
        """Drops the epochs before those given, one a source."""
        for source, epoch in list(self.tallies):
            if epoch < before[source]:
                del self.tallies[source, epoch]

    def plain(self) -> dict[Epoch, Plain]:
        """As they are now, in lists, dicts and numbers."""
        return {epoch: tally.plain() for epoch, tally in self.tallies.items()}


def merge_stats(plains: Iterable[Plain], max_bad_share: float) -> SampleStats:
    """One tally of several."""
    total = SampleStats(max_bad_share=max_bad_share)
    for one in plains:
        total.merge(stats_from_plain(one, max_bad_share=1.0))
    return total


log = logging.getLogger(__name__)


class ProcessStats:
    """The tallies of the epochs that some stream is in. `before`: what was counted before this process began."""

    def __init__(self, *, before: Mapping[Epoch, Plain], streams: int, max_bad_share: float, whose: str) -> None:
        self.of_stream: list[dict[Epoch, Plain]] = [dict(before), *({} for _ in range(streams))]
        self.max_bad_share, self.whose = max_bad_share, whose
        self.said: dict[Epoch, str] = {}
        self.over = SampleStats(max_bad_share=1.0)  # of epochs that are over

    def update(self, stream: int, tallies: Mapping[Epoch, Plain]) -> None:
        """What a stream has counted in the epochs that it is in, or was in until now."""
        self.of_stream[stream + 1].update(tallies)

    def joined(self) -> dict[Epoch, Plain]:
        """All streams together."""
        epochs = sorted({epoch for one in self.of_stream for epoch in one})
        return {epoch: self.total(epoch).plain() for epoch in epochs}

    def total(self, epoch: Epoch) -> SampleStats:
        return merge_stats([one[epoch] for one in self.of_stream if epoch in one], self.max_bad_share)

    def settle(self, oldest: Sequence[int]) -> None:
        """Judges, logs and drops the epochs before those given, one a source. Raises ValueError for too many bad."""
        for source, epoch in self.joined():
            if epoch < oldest[source]:
                self.total((source, epoch)).check()
                self.say((source, epoch), "")
                self.over.merge(self.total((source, epoch)))
                for one in self.of_stream:
                    one.pop((source, epoch), None)

    def so_far(self) -> dict[str, int]:
        """Samples since this process began, and in epochs that it has gone on with."""
        tallies = [self.over, *(self.total(epoch) for epoch in self.joined())]
        whats = {"read": "seen", "skipped": "bad", "filtered_out": "filtered"}
        return {name: sum(getattr(tally, what) for tally in tallies) for name, what in whats.items()}

    def say_so_far(self) -> None:
        """Logs the epochs that are not over, where there is something new."""
        for epoch in self.joined():
            self.say(epoch, ", so far")

    def say(self, at: Epoch, so_far: str) -> None:
        total = self.total(at)
        if not total.clean and self.said.get(at) != total.report():
            source, epoch = at
            log.warning(f"epoch {epoch} of source {source}{self.whose}{so_far}: {total.report()}")
            self.said[at] = total.report()
