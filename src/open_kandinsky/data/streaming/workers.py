"""The workers of a loader: what they make is a whole batch, and they outlive what tells the run to go."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from open_kandinsky.core.errors import NumericalError, UserError


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


def worked(batches: IterableDataset, workers: int) -> Iterator[Any]:
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
