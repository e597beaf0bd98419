"""What could not be used, counted for each epoch of each source."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from open_kandinsky.data.tars.tally import Skipped, restored

Plain = dict[str, Any]
Epoch = tuple[int, int]  # source, epoch


class Tallies:
    """A tally for each epoch of each source, judged by none: a stream meets bad samples before it uses good ones."""

    def __init__(self) -> None:
        self.tallies: defaultdict[Epoch, Skipped] = defaultdict(lambda: Skipped(max_bad_share=1.0))

    def __getitem__(self, epoch: Epoch) -> Skipped:
        return self.tallies[epoch]

    def bad(self) -> int:
        """How many cannot be used, in all epochs together."""
        return sum(tally.bad for tally in self.tallies.values())

    def joined(self, max_bad_share: float) -> Skipped:
        """All epochs in one."""
        return joined(self.plain().values(), max_bad_share)

    def forget(self, before: Sequence[int]) -> None:
        """Drops the epochs before those given, one a source."""
        for source, epoch in list(self.tallies):
            if epoch < before[source]:
                del self.tallies[source, epoch]

    def plain(self) -> dict[Epoch, Plain]:
        """As they are now, in lists, dicts and numbers."""
        return {epoch: tally.plain() for epoch, tally in self.tallies.items()}


def joined(plains: Iterable[Plain], max_bad_share: float) -> Skipped:
    """One tally of several."""
    total = Skipped(max_bad_share=max_bad_share)
    for one in plains:
        total.merge(restored(one, max_bad_share=1.0))
    return total
