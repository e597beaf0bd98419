"""Every sample once, in order, the last batches short: for validation, and to read a set into memory."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from torch.utils.data import IterableDataset, get_worker_info

from open_kandinsky.data.memory import Batch
from open_kandinsky.data.streaming import spans
from open_kandinsky.data.streaming.cursor import Cursor
from open_kandinsky.data.streaming.permutation import Permutation
from open_kandinsky.data.streaming.place import Place
from open_kandinsky.data.streaming.plan import Share
from open_kandinsky.data.streaming.protocols import Prepare, Shards
from open_kandinsky.data.streaming.queues import Queues, Rows
from open_kandinsky.data.streaming.tallies import Tallies, joined
from open_kandinsky.data.streaming.workers import worked
from open_kandinsky.data.tars.tally import Skipped

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Once:
    """What one stream of several has of the samples. `seed`: for what the rows draw, the same in each pass."""

    shards: Shards
    prepare: Prepare
    batch_size: int
    seed: int

    def batches(self, stream: int, streams: int) -> Iterator[Batch | Skipped]:
        """The batches, and then the tally."""
        tallies = Tallies()
        queues = Queues(Rows(prepare=self.prepare, seed=self.seed, tallies=tallies))
        mine = spans.part(spans.whole(self.shards.counts), stream, streams)
        share = Share(spans=mine, order=Permutation(n=spans.size(mine), buffer=1, seed=""))
        cursor = Cursor(
            source=0,
            shards=self.shards,
            share=lambda epoch: share,
            tally=lambda epoch: tallies[0, epoch],
            place=Place(0),
        )
        for found in islice(cursor.samples(), share.order.n):
            queue = None if found is None else queues.put(found)
            if queue is not None:
                yield from queue.full(self.batch_size)
        for queue in queues.all():
            yield from queue.short()
        yield tallies.joined(1.0)


class Streams(IterableDataset):
    """The parts of one process; each DataLoader worker has one of them."""

    def __init__(self, once: Once, *, process: int, processes: int) -> None:
        self.once, self.process, self.processes = once, process, processes

    def __iter__(self) -> Iterator[Batch | Skipped]:
        worker = get_worker_info()
        workers, at = (worker.num_workers, worker.id) if worker else (1, 0)
        return self.once.batches(self.process * workers + at, self.processes * workers)


class OnceLoader:
    """One process's batches, the same in each pass.

    What could not be used is logged at the end. Raises ValueError where its share passes `max_bad_share`.
    """

    def __init__(self, *, once: Once, workers: int, max_bad_share: float, process: int, processes: int) -> None:
        self.once, self.max_bad_share = once, max_bad_share
        self.workers = min(workers, sum(once.shards.counts))
        self.streams = Streams(once, process=process, processes=processes)

    def __iter__(self) -> Iterator[Batch]:
        tallies = []
        for made in worked(self.streams, self.workers):
            if isinstance(made, Skipped):
                tallies.append(made.plain())
            else:
                yield made
        total = joined(tallies, self.max_bad_share)
        total.check()
        if not total.clean:
            log.warning(total.report())
