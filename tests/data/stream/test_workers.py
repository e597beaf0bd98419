"""A worker ends when the process that has its loader says so, and at no other signal."""

import multiprocessing
import os
import signal
import subprocess
from itertools import count

import pytest
from torch.utils.data import IterableDataset

from open_kandinsky.core import failures
from open_kandinsky.core.errors import NumericalError, UserError
from open_kandinsky.data.stream.loader import run_workers


class Numbers(IterableDataset):
    def __iter__(self):
        return ((os.getpid(), at) for at in count())


@pytest.mark.parametrize("name", ["TERM", "USR1", "USR2"])
def test_a_signal_from_elsewhere_is_not_for_it(name):
    batches = iter(run_workers(Numbers(), 1))
    worker, at = next(batches)
    assert worker != os.getpid() and at == 0
    subprocess.run(["kill", f"-{name}", str(worker)], check=True)
    assert [next(batches) for _ in range(20)] == [(worker, at) for at in range(1, 21)]


def test_the_process_that_has_the_loader_ends_it():
    batches = iter(run_workers(Numbers(), 1))
    worker, _ = next(batches)
    (process,) = (child for child in multiprocessing.active_children() if child.pid == worker)
    os.kill(worker, signal.SIGTERM)
    process.join(20)
    assert process.exitcode == 0


class Failing(IterableDataset):
    def __init__(self, error):
        self.error = error

    def __iter__(self):
        yield 0
        raise self.error


ERRORS = [UserError("data.urls=x: no such shard"), NumericalError("the loss is nan"), FileNotFoundError(2, "gone", "a")]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_that_is_no_bug_arrives_as_it_was_raised(error, workers):
    batches = run_workers(Failing(error), workers)
    assert next(batches) == 0
    with pytest.raises(type(error)) as arrived:
        next(batches)
    assert str(arrived.value) == str(error) and failures.message(arrived.value) == failures.message(error)


def test_a_bug_in_a_worker_keeps_its_traceback():
    batches = run_workers(Failing(ValueError("not ours")), 1)
    next(batches)
    with pytest.raises(ValueError, match="(?s)in DataLoader worker.*raise self.error.*not ours") as arrived:
        next(batches)
    assert failures.message(arrived.value) is None
