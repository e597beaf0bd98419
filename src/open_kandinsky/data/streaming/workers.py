"""The workers of a loader: what they make is a whole batch, and they outlive what tells the run to go."""

import multiprocessing
import os
import signal
import threading
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset


def worked(batches: IterableDataset, workers: int) -> DataLoader:
    """What the set yields, made by so many workers in turn; without workers, here."""
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
