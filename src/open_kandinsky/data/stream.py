"""Batches straight from shards: webdataset's shard list, worker split and shuffle buffer around our reader."""

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from webdataset.filters import shuffle
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import SimpleShardList, split_by_worker

from open_kandinsky.data.memory import Batch, Position
from open_kandinsky.data.order import process
from open_kandinsky.data.reading import Raw, Sample, Skipped, decoded, raw_samples
from open_kandinsky.data.transforms import MAX_PIXELS

log = logging.getLogger(__name__)

Fields = dict[str, Callable[[Image.Image], Tensor]]
Arrange = Callable[[Iterator[Raw]], Iterator[Raw]]


def to_row(sample: Sample, *, fields: Fields) -> Batch:
    """One sample of a batch."""
    return {name: make(sample.image) for name, make in fields.items()} | {"caption": sample.caption, "key": sample.key}


def collate(rows: list[Batch]) -> Batch:
    """Tensors stacked, everything else a list."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {name: torch.stack(c) if isinstance(c[0], Tensor) else c for name, c in columns.items()}


def rows_of(batch: Batch) -> list[Batch]:
    """Undoes `collate`."""
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def shuffled(raws: Iterator[Raw], *, buffer: int, seed: str) -> Iterator[Raw]:
    """Through a buffer of undecoded samples: decoded ones would fill the memory. Each worker draws its own numbers."""
    worker = get_worker_info()
    return shuffle(buffer, initial=buffer, seed=f"{seed}/{worker.id if worker else 0}")(raws)


def every_nth(raws: Iterator[Raw], *, first: int, n: int) -> Iterator[Raw]:
    """Splits samples, not shards, between processes: a validation set is often a single shard."""
    return islice(raws, first, None, n)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """What one worker does with its shards: batches, the last one short, and then its tally."""

    make_row: Callable[[Sample], Batch]
    batch_size: int
    max_bad_share: float

    def pipeline(self, shards: list[str], arrange: Arrange) -> DataPipeline:
        """`arrange` shuffles or picks the undecoded samples."""
        return DataPipeline(SimpleShardList(shards), split_by_worker, partial(self.batches, arrange=arrange))

    def batches(self, shards: Iterable[dict[str, str]], *, arrange: Arrange) -> Iterator[Batch | Skipped]:
        tally = Skipped(max_bad_share=self.max_bad_share)
        raws = arrange(raw_samples((shard["url"] for shard in shards), tally))
        rows = (self.make_row(sample) for sample in decoded(raws, tally, MAX_PIXELS))
        while chunk := list(islice(rows, self.batch_size)):
            yield collate(chunk)
        yield tally


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """Full batches: shards shuffled and split between processes and workers, then samples within a buffer.

    Shards seldom hold equally many samples: with several processes set the trainer's limit_train_batches, so that
    none waits for a batch that another does not have.
    """

    shards: list[str]
    buffer: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.shards) < process()[1]:
            raise ValueError(f"{len(self.shards)} shards for {process()[1]} processes: write more, smaller shards")

    def pipeline(self, reader: Reader, epoch: int) -> DataPipeline:
        rank, processes = process()
        mine = random.Random(f"{self.seed}/{epoch}").sample(self.shards, len(self.shards))[rank::processes]
        arrange = partial(shuffled, buffer=self.buffer, seed=f"{self.seed}/{epoch}/{rank}")
        return reader.pipeline(mine, arrange)

    def workers(self, wanted: int) -> int:
        return usable_workers(wanted, len(self.shards) // process()[1])

    def finish(self, made: Iterator[Batch], batch_size: int) -> Iterator[Batch]:
        """Full batches as they come, then full ones joined from the workers' short last ones; the rest is dropped."""
        short: list[Batch] = []
        count = 0
        for batch in made:
            if len(batch["key"]) < batch_size:
                short += rows_of(batch)
            else:
                count += 1
                yield batch
        if count == 0 and len(short) < batch_size:
            raise ValueError(f"{len(short)} samples do not fill one batch of batch_size={batch_size}: lower batch_size")
        yield from (collate(short[at : at + batch_size]) for at in range(0, len(short) - batch_size + 1, batch_size))


@dataclass(frozen=True, kw_only=True)
class OncePlan:
    """Every sample once, in order, short batches kept; `process` has every `processes`-th sample."""

    shards: list[str]
    process: int
    processes: int

    def pipeline(self, reader: Reader, epoch: int) -> DataPipeline:
        return reader.pipeline(self.shards, partial(every_nth, first=self.process, n=self.processes))

    def workers(self, wanted: int) -> int:
        return usable_workers(wanted, len(self.shards))

    def finish(self, made: Iterator[Batch], batch_size: int) -> Iterator[Batch]:
        return made


def usable_workers(wanted: int, shards: int) -> int:
    """A worker without a shard would only cost memory."""
    if wanted > shards:
        rank_zero_warn(f"workers={wanted}, but only {shards} shard(s) a process to share out: using {shards} workers")
    return min(wanted, shards)


class StreamLoader:
    """Batches of a plan over `workers` processes, started anew each epoch. A resume reads again what it skips.

    What was skipped is logged at the end of each pass, over all workers together. Raises ValueError where its share
    passes the reader's `max_bad_share`.
    """

    def __init__(self, *, plan: TrainPlan | OncePlan, reader: Reader, workers: int, trained: Callable[[], int]) -> None:
        self.plan, self.reader, self.workers = plan, reader, plan.workers(workers)
        self.position = Position(trained=trained, ahead=1)  # Lightning looks one ahead where there is no length
        self.state_dict, self.load_state_dict = self.position.state_dict, self.position.load_state_dict

    def __iter__(self) -> Iterator[Batch]:
        return self.position.walk(lambda epoch: self.plan.finish(self.made(epoch), self.reader.batch_size))

    def made(self, epoch: int) -> Iterator[Batch]:
        """The batches of all workers; their tallies are joined, judged and reported."""
        tally = Skipped(max_bad_share=self.reader.max_bad_share)
        for made in self.workers_output(epoch):
            if isinstance(made, Skipped):
                tally.merge(made)
            else:
                yield made
        tally.check()
        if tally.bad:
            log.warning(tally.report())

    def workers_output(self, epoch: int) -> DataLoader:
        return DataLoader(
            cast(Any, self.plan.pipeline(self.reader, epoch)),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(0),  # without its own, it would draw from the global one
        )
