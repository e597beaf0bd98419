"""Loaders that yield batches from streams of samples, each stream in a DataLoader worker.

`StreamLoader` is the training loader of one process: endless, shuffled, and resumable after any batch; `Streaming`
makes one for some sources. `SequentialLoader` yields every sample once, in order: for validation, and to read a set
into memory. `ResumableData` has the hooks by which Lightning saves and restores a training loader. `run_workers` is how
the loaders run their workers: batches come from the workers in turn, errors arrive as themselves, and workers ignore
the signals that ask a run to stop, so that the process which saves a checkpoint decides when they end.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from open_kandinsky.core.distributed import gather_objects, rank_and_world_size, world_size
from open_kandinsky.core.errors import NumericalError, UserError
from open_kandinsky.data.memory import Batch, EpochIterator, Held, MemoryLoader, Order, whole_batches
from open_kandinsky.data.stream import permutation
from open_kandinsky.data.stream.batches import BucketBatcher
from open_kandinsky.data.stream.layout import Layout, Progress, checkpoint, fresh, resume
from open_kandinsky.data.stream.permutation import Permutation
from open_kandinsky.data.stream.plan import Assignment, Cursor, Plan, Prepare, Shards, SourcePosition, StreamState
from open_kandinsky.data.stream.stream import Recipe, Stream, StreamBatch
from open_kandinsky.data.tar.stats import ProcessStats, SampleStats, StreamStats, merge_stats

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """An error on its way from a worker: a DataLoader alone would send its traceback as text."""

    error: Exception


class ErrorsAsItems(IterableDataset):
    """The items of a dataset, and as last item the error that ended it, unless that is a bug."""

    def __init__(self, dataset: IterableDataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.dataset
        except (UserError, NumericalError, OSError) as error:
            yield Failure(error)


def run_workers(dataset: IterableDataset, workers: int) -> Iterator[Any]:
    """The items of a dataset from so many workers in turn, or from this process. Raises the workers' errors."""
    loader = DataLoader(
        ErrorsAsItems(dataset) if workers else dataset,
        batch_size=None,
        num_workers=workers,
        collate_fn=unchanged,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),  # without its own, it would draw from the global one
        worker_init_fn=ignore_signals,
    )
    for item in loader:
        if isinstance(item, Failure):
            raise item.error
        yield item


def unchanged(item: Any) -> Any:
    """A DataLoader's own collate_fn for single items would look for arrays to convert."""
    return item


def ignore_signals(worker: int) -> None:
    """In a worker: only the process that has the loader can end it.

    Batch systems send their signals to every process of a run, and a terminal its Ctrl-C. A worker that ended by one
    would take the step, and with it the checkpoint, from the process that is about to save.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=exit_on_sigterm_of_parent, daemon=True).start()


def exit_on_sigterm_of_parent() -> None:
    """Waits for SIGTERM from the process that has the loader: a signal handler would not know the sender."""
    parent = multiprocessing.parent_process()
    pid = parent.pid if parent else None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != pid:
        pass
    os._exit(0)


@dataclass(frozen=True, kw_only=True)
class SequentialReader(IterableDataset):
    """Every sample of some shards once, in their order, divided among all workers of all processes.

    `seed`: of the rows' random numbers, equal in each pass.
    """

    shards: Shards
    prepare: Prepare
    batch_size: int
    seed: int
    rank: int = 0
    processes: int = 1

    def __iter__(self) -> Iterator[Batch | SampleStats]:
        worker = get_worker_info()
        workers, at = (worker.num_workers, worker.id) if worker else (1, 0)
        return self.batches(self.rank * workers + at, self.processes * workers)

    def batches(self, stream: int, streams: int) -> Iterator[Batch | SampleStats]:
        """The batches of one of several streams, the last ones short, and then its statistics."""
        stats = StreamStats()
        batcher = BucketBatcher(prepare=self.prepare, seed=self.seed, stats=stats)
        mine = permutation.split(permutation.all_samples(self.shards.counts), stream, streams)
        order = Permutation(n=permutation.total(mine), buffer=1, seed="")
        cursor = Cursor(
            source=0,
            shards=self.shards,
            assignment=lambda epoch: Assignment(intervals=mine, order=order),
            stats=partial(stats.of, 0),
            position=SourcePosition(0),
        )
        for sample in islice(cursor.samples(), order.n):
            bucket = None if sample is None else batcher.add(sample)
            if bucket is not None:
                yield from bucket.full_batches(self.batch_size)
        for bucket in batcher.buckets.values():
            yield from bucket.last_batch()
        yield stats.merged(1.0)


class SequentialLoader:
    """The batches of a dataset that ends, and whose workers yield their statistics as last item.

    Samples that could not be used are logged at the end. Raises UserError where their share passes `max_bad_share`.
    """

    def __init__(self, dataset: IterableDataset, *, workers: int, max_bad_share: float) -> None:
        self.dataset, self.workers, self.max_bad_share = dataset, workers, max_bad_share

    def __iter__(self) -> Iterator[Batch]:
        stats = []
        for item in run_workers(self.dataset, self.workers):
            if isinstance(item, SampleStats):
                stats.append(item.plain())
            else:
                yield item
        total = merge_stats(stats, self.max_bad_share)
        total.check()
        if not total.clean:
            log.warning(total.report())


class StreamDataset(IterableDataset):
    """Streams by number and state, one for each DataLoader worker; without workers there is one."""

    def __init__(self, recipe: Recipe, streams: Sequence[tuple[int, StreamState]]) -> None:
        self.recipe, self.streams = recipe, streams

    def __iter__(self) -> Iterator[StreamBatch]:
        worker = get_worker_info()
        number, state = self.streams[worker.id if worker else 0]
        return iter(Stream(self.recipe, number=number, state=state))


class StreamLoader:
    """Endless batches; an epoch has as many as every process can fill from all samples. Workers live until `close`.

    Samples that could not be used are logged for each epoch of the data when it is over, and for open epochs at the end
    of a pass. Raises UserError where their share passes the recipe's `max_bad_share`, and where there is no batch.
    """

    def __init__(self, *, recipe: Recipe, workers: int, progress: Progress, trained: Callable[[], int | None]) -> None:
        self.recipe, self.workers = recipe, workers
        length = whole_batches(recipe.plan.samples, recipe.batch_size)
        self.epochs = EpochIterator(start=progress, length=length, trained=trained)
        self.stats = new_stats(recipe, progress)
        self.batches: Iterator[tuple[Batch, Progress]] | None = None

    def __len__(self) -> int:
        return self.epochs.length

    def __iter__(self) -> Iterator[Batch]:
        if self.batches is None:
            progress = self.epochs.last_fetched()
            self.stats = new_stats(self.recipe, progress)
            self.batches = endless(self.recipe, self.workers, progress, self.stats, log_every=len(self))
        return self.epochs.iterate(self.batches)

    def close(self) -> None:
        """Ends the workers; the position stays, and another pass would continue there."""
        self.batches = None

    def saved(self) -> dict[str, Any]:
        """The position of all processes after the last batch that was trained with. A collective call."""
        progress = self.epochs.last_trained()
        layout = Layout(world_size(), len(progress.states))
        return checkpoint(self.recipe.plan, layout, gather_objects(progress.plain()))

    def state_dict(self) -> dict[str, Any]:
        """Empty: the data module saves `saved`, where Lightning asks every process once."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Does nothing: a loader is made at the position where it continues."""


def endless(
    recipe: Recipe, workers: int, progress: Progress, stats: ProcessStats, *, log_every: int
) -> Iterator[tuple[Batch, Progress]]:
    """All batches of a process from `progress` on, and the progress after each; the workers yield them in turn.

    A free function, so that the loader can be garbage-collected and its workers stop.
    """
    n, rank = len(progress.states), rank_and_world_size()[0]
    turns = [(progress.batches + at) % n for at in range(n)]
    dataset = StreamDataset(recipe, [(rank * n + turn, progress.states[turn]) for turn in turns])
    for made in run_workers(dataset, workers):
        states, turn = list(progress.states), progress.batches % n
        states[turn] = made.state
        stats.update(turn, made.stats)
        stats.close_epochs([min(epochs) for epochs in zip(*(state.oldest_epochs() for state in states), strict=True)])
        counted = {epoch: total.plain() for epoch, total in stats.open_epochs().items()}
        progress = Progress(states=states, batches=progress.batches + 1, stats=counted)
        if progress.batches % log_every == 0:
            stats.log_open_epochs()
        yield made.batch, progress


def new_stats(recipe: Recipe, progress: Progress) -> ProcessStats:
    """Statistics that continue those of `progress`."""
    rank, processes = rank_and_world_size()
    return ProcessStats(
        before=progress.stats,
        streams=len(progress.states),
        max_bad_share=recipe.max_bad_share,
        suffix="" if processes == 1 else f", process {rank} of {processes}",
    )


class StreamSource(NamedTuple):
    """Shards, a hash of their names and counts, and how often they are drawn compared with other sources."""

    shards: Shards
    identity: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """How a data module streams. `buffer`: samples in each worker's shuffle buffer of each source."""

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
        """From the beginning, or from a checkpoint's `saved` where it is not empty.

        Raises UserError where the checkpoint is of other data, and where the samples do not fill one batch.
        """
        counts = [source.shards.counts for source in sources]
        batches = whole_batches(sum(map(sum, counts)), self.batch_size)
        workers = min(self.workers, batches)  # one without a batch in each epoch would only cost memory
        if workers < self.workers:
            told = f"workers={self.workers}, but only {batches} batch(es) an epoch to share out"
            rank_zero_warn(f"{told}: using {workers} workers")
        layout = Layout(world_size(), max(1, workers))
        plan = Plan(
            identities=[source.identity for source in sources],
            counts=counts,
            seed=self.seed,
            buffer=self.buffer,
            streams=layout.streams,
            first_epochs=[0] * len(sources),
            remaining=[{} for _ in sources],
        )
        progress = fresh(plan, layout.workers)
        if saved:
            plan, progress = resume(dict(saved), plan, layout, rank=rank_and_world_size()[0])
        recipe = Recipe(
            plan=plan,
            sources=[source.shards for source in sources],
            weights=[source.weight for source in sources],
            prepare=self.prepare,
            batch_size=self.batch_size,
            max_bad_share=self.max_bad_share,
        )
        return StreamLoader(recipe=recipe, workers=workers, progress=progress, trained=trained)


class ResumableData(LightningDataModule):
    """Lightning's hooks of a data module whose training loader continues where a checkpoint was made.

    A base class because Lightning finds its hooks by their names. A data module of ours has `new_train_loader`.
    """

    train_loader: MemoryLoader | StreamLoader | None = None
    resume_state: Mapping[str, Any] = MappingProxyType({})  # that training continues from; empty: from the beginning

    def new_train_loader(self) -> MemoryLoader | StreamLoader:
        raise NotImplementedError

    def train_dataloader(self) -> MemoryLoader | StreamLoader:
        self.train_loader = self.new_train_loader()
        return self.train_loader

    def memory_loader(self, table: Held, order: Order) -> MemoryLoader:
        """The training loader of a set in memory."""
        loader = MemoryLoader(table=table, order=order, trained=self.batches_trained)
        if self.resume_state:
            loader.load_state_dict(dict(self.resume_state))
        return loader

    def batches_trained(self) -> int | None:
        """How many batches of its present epoch the trainer has taken; None without a trainer."""
        return None if self.trainer is None else self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def state_dict(self) -> dict[str, Any]:
        """The position of all processes. Lightning does not load its own copy after a checkpoint at an epoch's end."""
        return {} if self.train_loader is None else self.train_loader.saved()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resume_state = state_dict

    def teardown(self, stage: str) -> None:
        """Workers end with the training, however it ends; its position can still be saved."""
        if self.train_loader is not None:
            self.train_loader.close()

    def on_exception(self, exception: BaseException) -> None:
        self.teardown("fit")
