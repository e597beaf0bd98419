"""What all streams of a process have counted: joined, judged and logged epoch by epoch."""

import logging
from collections.abc import Mapping, Sequence

from open_kandinsky.data.streaming.tallies import Epoch, Plain, joined
from open_kandinsky.data.tars.tally import Skipped

log = logging.getLogger(__name__)


class Counts:
    """The tallies of the epochs that some stream is in. `before`: what was counted before this process began."""

    def __init__(self, *, before: Mapping[Epoch, Plain], streams: int, max_bad_share: float, whose: str) -> None:
        self.of_stream: list[dict[Epoch, Plain]] = [dict(before), *({} for _ in range(streams))]
        self.max_bad_share, self.whose = max_bad_share, whose
        self.said: dict[Epoch, str] = {}
        self.over = Skipped(max_bad_share=1.0)  # of epochs that are over

    def update(self, stream: int, tallies: Mapping[Epoch, Plain]) -> None:
        """What a stream has counted in the epochs that it is in, or was in until now."""
        self.of_stream[stream + 1].update(tallies)

    def joined(self) -> dict[Epoch, Plain]:
        """All streams together."""
        epochs = sorted({epoch for one in self.of_stream for epoch in one})
        return {epoch: self.total(epoch).plain() for epoch in epochs}

    def total(self, epoch: Epoch) -> Skipped:
        return joined([one[epoch] for one in self.of_stream if epoch in one], self.max_bad_share)

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
