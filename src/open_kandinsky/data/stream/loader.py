"""The workers of a loader: what they make is a whole batch, and they outlive what tells the run to go.

Every sample once, in order, the last batches short: for validation, and to read a set into memory.

The training loader of one process: its streams, each in a worker, and their place for the checkpoint.

A loader over some sources, from their beginning or from where a checkpoint says.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from open_kandinsky.core.distributed import gather_objects, rank_and_world_size, world_size
from open_kandinsky.core.errors import NumericalError, UserError
from open_kandinsky.data.memory import Batch
from open_kandinsky.data.order import EpochIterator, whole_batches
from open_kandinsky.data.stream import permutation
from open_kandinsky.data.stream.batches import BucketBatcher, RowMaker
from open_kandinsky.data.stream.layout import Layout, Progress, checkpoint, fresh, resumed
from open_kandinsky.data.stream.permutation import Permutation
from open_kandinsky.data.stream.plan import Cursor, Plan, Prepare, Shards, Share, SourcePosition, StreamState
from open_kandinsky.data.stream.stream import Made, Recipe, Stream
from open_kandinsky.data.stream.tallies import ProcessStats, StreamStats, merge_stats
from open_kandinsky.data.tar.stats import SampleStats


@dataclass(frozen=True)
class Failure:
    """An error on its way from a worker: a DataLoader alone would send its traceback as text."""

    error: Exception


class Sent(IterableDataset):
    """What a dataset yields in a worker, and the error that ends it, if it is no bug."""

    def __init__(self, batches: IterableDataset) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.batches
        except (UserError, NumericalError, OSError) as error:
            yield Failure(error)


def run_workers(batches: IterableDataset, workers: int) -> Iterator[Any]:
    """What the dataset yields, made by so many workers in turn; without workers, here. Their errors are raised here."""
    for made in loader(Sent(batches) if workers else batches, workers):
        if isinstance(made, Failure):
            raise made.error
        yield made


def loader(batches: IterableDataset, workers: int) -> DataLoader:
    return DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        collate_fn=as_it_is,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),  # without its own, it would draw from the global one
        worker_init_fn=outlive,
    )


def as_it_is(made: Any) -> Any:
    """A DataLoader that makes no batches would look for arrays to convert."""
    return made


def outlive(worker: int) -> None:
    """In a worker: only the process that has the loader can end it.

    Batch systems send their signals to every process of a run, and a terminal its Ctrl-C. A worker that ended by one
    would take the step, and with it the checkpoint, from the process that is about to save.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Waits for SIGTERM from the process that has the loader: a handler would not know whose it is."""
    parent = multiprocessing.parent_process()
    whose = parent.pid if parent else None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != whose:
        pass
    os._exit(0)


log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SequentialReader:
    """What one stream of several has of the samples. `seed`: for what the rows draw, the same in each pass."""

    shards: Shards
    prepare: Prepare
    batch_size: int
    seed: int

    def batches(self, stream: int, streams: int) -> Iterator[Batch | SampleStats]:
        """The batches, and then the tally."""
        tallies = StreamStats()
        queues = BucketBatcher(RowMaker(prepare=self.prepare, seed=self.seed, tallies=tallies))
        mine = permutation.part(permutation.whole(self.shards.counts), stream, streams)
        share = Share(spans=mine, order=Permutation(n=permutation.size(mine), buffer=1, seed=""))
        cursor = Cursor(
            source=0,
            shards=self.shards,
            share=lambda epoch: share,
            tally=lambda epoch: tallies[0, epoch],
            place=SourcePosition(0),
        )
        for found in islice(cursor.samples(), share.order.n):
            queue = None if found is None else queues.put(found)
            if queue is not None:
                yield from queue.full(self.batch_size)
        for queue in queues.all():
            yield from queue.short()
        yield tallies.joined(1.0)


class ReaderDataset(IterableDataset):
    """The parts of one process; each DataLoader worker has one of them."""

    def __init__(self, once: SequentialReader, *, process: int, processes: int) -> None:
        self.once, self.process, self.processes = once, process, processes

    def __iter__(self) -> Iterator[Batch | SampleStats]:
        worker = get_worker_info()
        workers, at = (worker.num_workers, worker.id) if worker else (1, 0)
        return self.once.batches(self.process * workers + at, self.processes * workers)


class SequentialLoader:
    """One process's batches, the same in each pass.

    What could not be used is logged at the end. Raises ValueError where its share passes `max_bad_share`.
    """

    def __init__(
        self, *, once: SequentialReader, workers: int, max_bad_share: float, process: int, processes: int
    ) -> None:
        self.once, self.max_bad_share = once, max_bad_share
        self.workers = min(workers, sum(once.shards.counts))
        self.streams = ReaderDataset(once, process=process, processes=processes)

    def __iter__(self) -> Iterator[Batch]:
        tallies = []
        for made in run_workers(self.streams, self.workers):
            if isinstance(made, SampleStats):
                tallies.append(made.plain())
            else:
                yield made
        total = merge_stats(tallies, self.max_bad_share)
        total.check()
        if not total.clean:
            log.warning(total.report())


class StreamDataset(IterableDataset):
    """Some streams, one for each worker of a DataLoader; without workers there is one."""

    def __init__(self, recipe: Recipe, streams: Sequence[tuple[int, StreamState]]) -> None:
        self.recipe, self.streams = recipe, streams

    def __iter__(self) -> Iterator[Made]:
        worker = get_worker_info()
        number, begin = self.streams[worker.id if worker else 0]
        return iter(Stream(self.recipe, number=number, begin=begin))


class StreamLoader:
    """Endless batches; a pass is as many as each process can fill of an epoch. Workers live until `close`.

    What could not be used is logged for each epoch of the data when it is over, and at the end of a pass for those
    that are not. Raises ValueError where its share passes the recipe's `max_bad_share`, and where there is no batch.
    """

    def __init__(self, *, recipe: Recipe, workers: int, progress: Progress, trained: Callable[[], int | None]) -> None:
        self.recipe, self.workers = recipe, workers
        length = whole_batches(recipe.plan.samples, recipe.batch_size)
        self.passes = EpochIterator(begin=progress, length=length, trained=trained)
        self.counts = counts_of(recipe, progress)
        self.batches: Iterator[tuple[Batch, Progress]] | None = None

    def __len__(self) -> int:
        return self.passes.length

    def __iter__(self) -> Iterator[Batch]:
        if self.batches is None:
            progress = self.passes.last()
            self.counts = counts_of(self.recipe, progress)
            self.batches = endless(in_turn(self.recipe, self.workers, progress), progress, self.counts, len(self))
        return self.passes.walk(self.batches)

    def close(self) -> None:
        """Ends the workers; the place stays, and another pass would go on there."""
        self.batches = None

    def saved(self) -> dict[str, Any]:
        """The place of all processes after the last batch that was trained with. Every process must ask for it."""
        progress = self.passes.place()
        layout = Layout(world_size(), len(progress.places))
        return checkpoint(self.recipe.plan, layout, gather_objects(progress.plain()))

    def state_dict(self) -> dict[str, Any]:
        """Empty: the data module saves `saved`, where Lightning asks every process once."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: a loader is made where it goes on."""


def endless(
    work: Iterable[Made], progress: Progress, counts: ProcessStats, length: int
) -> Iterator[tuple[Batch, Progress]]:
    """All batches of a process from where it is, and the progress after each; every `length` batches it reports.

    No method of the loader, which would hold itself by it: workers are to end when nobody has the loader any more.
    """
    for made in work:
        progress = after(progress, made, counts)
        if progress.drawn % length == 0:
            counts.say_so_far()
        yield made.batch, progress


def in_turn(recipe: Recipe, workers: int, progress: Progress) -> Iterable[Made]:
    """The workers give batches in turn; the one whose turn it is comes first."""
    n, rank = len(progress.places), rank_and_world_size()[0]
    turns = [(progress.drawn + at) % n for at in range(n)]
    streams = StreamDataset(recipe, [(rank * n + turn, progress.places[turn]) for turn in turns])
    return run_workers(streams, workers)


def counts_of(recipe: Recipe, progress: Progress) -> ProcessStats:
    """What was counted until there."""
    rank, processes = rank_and_world_size()
    return ProcessStats(
        before=progress.tallies,
        streams=len(progress.places),
        max_bad_share=recipe.max_bad_share,
        whose="" if processes == 1 else f", process {rank} of {processes}",
    )


def after(progress: Progress, made: Made, counts: ProcessStats) -> Progress:
    """One batch further."""
    places, turn = list(progress.places), progress.drawn % len(progress.places)
    places[turn] = made.after
    counts.update(turn, made.tallies)
    counts.settle([min(epochs) for epochs in zip(*(place.epochs() for place in places), strict=True)])
    return Progress(places=places, drawn=progress.drawn + 1, tallies=counts.joined())


class StreamSource(NamedTuple):
    """Shards, what tells them from others, and how often they are drawn beside those of other sources."""

    shards: Shards
    identity: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """How a data module streams. `buffer`: examples that each worker holds of each source."""

    prepare: Prepare
    batch_size: int
    workers: int
    buffer: int
    seed: int
    max_bad_share: float

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"data.batch_size={self.batch_size}: at least 1")
        if self.buffer < 1:
            raise UserError(f"shuffle_buffer={self.buffer}: at least 1, which leaves a shard in its own order")

    def loader(
        self, sources: Sequence[StreamSource], *, saved: Mapping[str, Any], trained: Callable[[], int | None]
    ) -> StreamLoader:
        """`saved`: of a checkpoint, or empty. ValueError where it is of other data, or there is not one batch."""
        samples = sum(sum(source.shards.counts) for source in sources)
        workers = usable_workers(self.workers, whole_batches(samples, self.batch_size))
        layout = Layout(world_size(), max(1, workers))
        plan, progress = self.where(sources, saved, layout)
        recipe = Recipe(
            plan=plan,
            sources=[source.shards for source in sources],
            weights=[source.weight for source in sources],
            prepare=self.prepare,
            batch_size=self.batch_size,
            max_bad_share=self.max_bad_share,
        )
        return StreamLoader(recipe=recipe, workers=workers, progress=progress, trained=trained)

    def where(self, sources: Sequence[StreamSource], saved: Mapping[str, Any], layout: Layout) -> tuple[Plan, Progress]:
        """The order of samples, and this process's place in it."""
        plan = Plan(
            identities=[source.identity for source in sources],
            counts=[source.shards.counts for source in sources],
            seed=self.seed,
            buffer=self.buffer,
            streams=layout.streams,
            begins=[0] * len(sources),
            rest=[{} for _ in sources],
        )
        if saved:
            return resumed(dict(saved), plan, layout, rank=rank_and_world_size()[0])
        return plan, fresh(plan, layout.workers)


def usable_workers(wanted: int, batches: int) -> int:
    """A worker without a batch in each epoch would only cost memory."""
    if wanted > batches:
        rank_zero_warn(f"workers={wanted}, but only {batches} batch(es) an epoch to share out: using {batches} workers")
    return min(wanted, batches)
