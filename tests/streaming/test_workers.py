"""A worker ends when the process that has its loader says so, and at no other signal."""

import multiprocessing
import os
import signal
import subprocess
from itertools import count

import pytest
from torch.utils.data import IterableDataset

from open_kandinsky.data.streaming.workers import worked


class Numbers(IterableDataset):
    def __iter__(self):
        return ((os.getpid(), at) for at in count())


@pytest.mark.parametrize("name", ["TERM", "USR1", "USR2"])
def test_a_signal_from_elsewhere_is_not_for_it(name):
    batches = iter(worked(Numbers(), 1))
    worker, at = next(batches)
    assert worker != os.getpid() and at == 0
    subprocess.run(["kill", f"-{name}", str(worker)], check=True)
    assert [next(batches) for _ in range(20)] == [(worker, at) for at in range(1, 21)]


def test_the_process_that_has_the_loader_ends_it():
    batches = iter(worked(Numbers(), 1))
    worker, _ = next(batches)
    (process,) = (child for child in multiprocessing.active_children() if child.pid == worker)
    os.kill(worker, signal.SIGTERM)
    process.join(20)
    assert process.exitcode == 0
