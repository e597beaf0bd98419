"""A callback that ends a training which stands still, after it has printed the likely cause and every thread's stack.

The cause is read from the phase that the loop is in (callbacks/phases.py) and from the state of the run's other
processes (callbacks/processes.py). The stacks are `faulthandler`'s.
"""

import faulthandler
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol, runtime_checkable

from lightning import Callback, LightningModule, Trainer

from open_kandinsky.callbacks.phases import SAVING, WAITING, Clock, Phase, phases
from open_kandinsky.callbacks.processes import (
    Beat,
    Heartbeats,
    ProcessUsage,
    describe_process,
    laggards,
    process_usage,
    reader_pids,
)

STALLED = 75  # the exit code: sysexits.h's EX_TEMPFAIL, "try again later"
LOOKS = 10  # in the shortest limit
STDERR = 2  # a descriptor, which faulthandler writes to without Python's help


STEP, VALIDATION, CHECKPOINT, FIRST = "step", "validation", "checkpoint", "first step"  # each has a limit in seconds
PHASES = {  # the last part of a phase's name: words for it, and whether processes wait for each other there
    "training_step": ("in the forward pass", False),
    "validation_step": ("in the forward pass of a validation", False),
    "optimizer_step": ("in an optimiser's step", False),
    "batch_to_device": ("copying a batch to the device", False),
    "val_next": ("waiting for a batch of the validation set", False),
    "backward": ("in the backward pass, which ends in all processes together", True),
    "run_training_epoch": ("between two steps, where processes meet", True),
}


class Activity(NamedTuple):
    kind: str  # STEP, VALIDATION, CHECKPOINT or FIRST
    words: str
    since: float  # by the clock of the phases
    collective: bool  # it may be waiting for other processes


def activity(open_phases: Sequence[Phase], *, validating: bool, first: bool, now: float) -> Activity:
    """What the training does, from the phases that are open, outermost first."""
    since = {phase.name: phase.since for phase in open_phases}
    kind = CHECKPOINT if SAVING in since else VALIDATION if validating else FIRST if first else STEP
    for name, words in ((SAVING, "writing a checkpoint"), (WAITING, "waiting for a batch")):
        if name in since:
            return Activity(kind, words, since[name], collective=False)
    if first and not open_phases:
        return Activity(kind, "getting ready: it opens the data", now, collective=False)
    innermost = open_phases[-1] if open_phases else Phase("run_training_epoch", now)
    words, collective = PHASES.get(innermost.name.rpartition(".")[2], (f"in {innermost.name}", False))
    return Activity(kind, words, innermost.since, collective)


def in_collective() -> bool:
    """Whether the main thread is in torch.distributed, and so waits for other processes."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return any("torch/distributed/" in each.f_code.co_filename for each, _ in traceback.walk_stack(frame) if frame)


@runtime_checkable
class StreamedData(Protocol):
    """Data that is read from shards by workers."""

    shards: list[str]
    workers: int


class Watchdog(Callback):
    """Prints the likely cause when nothing ends for too long, and `stop_after` seconds later exits with code 75.

    A step, a validation's batch and a checkpoint are signs of life. Each has its own limit in seconds: `after` for a
    step, `first_after` for the first one (which opens the data and compiles), `validation_after` for a batch of a
    validation, `checkpoint_after`. It looks from a thread of its own and costs the training nothing. Where a library
    hangs and keeps Python's lock, that thread cannot run: then faulthandler prints the stacks, and nothing exits.
    """

    def __init__(
        self,
        *,
        after: float | int,
        first_after: float | int,
        validation_after: float | int,
        checkpoint_after: float | int,
        stop_after: float | int,
        folder: str,
        clock: Clock = time.monotonic,
        stop: Callable[[], object] | None = None,
    ) -> None:
        self.limits = {STEP: after, FIRST: first_after, VALIDATION: validation_after, CHECKPOINT: checkpoint_after}
        self.stop_after, self.folder, self.clock, self.stop = stop_after, folder, clock, stop or exit_stalled
        self.warned: float | None = None  # when this stall was reported
        self.over = threading.Event()
        self.usage: dict[int, ProcessUsage | None] = {}  # of the readers, when all was well last
        self.usage_at = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.watch(trainer)
        self.over.clear()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def watch(self, trainer: Trainer) -> None:
        """Count from now on; `look` must be called by whoever has no thread for it."""
        self.trainer, self.phases = trainer, phases(trainer)
        self.heartbeats = Heartbeats(self.folder, rank=trainer.global_rank, processes=trainer.world_size)
        self.step, self.first, self.validating, self.kind = trainer.global_step, True, False, FIRST
        self.last = self.usage_at = self.clock()

    def _run(self) -> None:
        while not self.over.wait(min(self.limits.values()) / LOOKS):
            self.look()
            faulthandler.dump_traceback_later(self.limits[self.kind], file=STDERR)
        faulthandler.cancel_dump_traceback_later()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.step, self.first, self.last = trainer.global_step, False, self.clock()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validating, self.last = True, self.clock()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.last = self.clock()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validating, self.last = False, self.clock()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.over.set()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.over.set()

    def look(self) -> None:
        """Compare the time since the last sign of life with its limit; report, call off or exit."""
        now, waits = self.clock(), in_collective()
        doing = activity(self.phases.open, validating=self.validating, first=self.first, now=now)
        if self.kind == CHECKPOINT != doing.kind:  # a checkpoint has ended
            self.last = now
        self.kind = doing.kind
        self.heartbeats.write(Beat(self.step, doing.words, doing.collective or waits, time.time()))
        quiet = now - (max(self.last, doing.since) if doing.kind == CHECKPOINT else self.last)
        if quiet < self.limits[doing.kind]:
            if self.warned is not None:
                self.say(f"it goes on, after step {self.step}")
            self.warned, self.usage, self.usage_at = None, {pid: process_usage(pid) for pid in reader_pids()}, now
        elif self.warned is None:
            self.warned = now
            self.say(self.report(doing, waits, quiet, now))
            faulthandler.dump_traceback(file=STDERR)
        elif now - self.warned >= self.stop_after:
            self.say(f"nothing for {quiet:.0f} s: it ends with exit code {STALLED}")
            self.stop()

    def say(self, message: str) -> None:
        print(f"watchdog, process {self.heartbeats.rank}: {message}", file=sys.stderr, flush=True)

    def report(self, doing: Activity, waits: bool, quiet: float, now: float) -> str:
        """All that is known but the stacks, which follow."""
        lines = [
            f"no {doing.kind} has ended for {quiet:.0f} s, after step {self.step}",
            f"it is {doing.words}, for {now - doing.since:.0f} s" + ", and waits for other processes" * waits,
            *self.about_processes(),
            *(self.about_data(now) if "batch" in doing.words else []),
            f"unless something ends, it stops in {self.stop_after:.0f} s with exit code {STALLED}; "
            "callbacks.watchdog has the limits",
            "the stacks of all threads, innermost line first:",
        ]
        return "\n  ".join(lines)

    def about_processes(self) -> list[str]:
        beats = self.heartbeats.read()
        late = laggards(beats, now=time.time(), dead_after=float(self.limits[STEP]))
        silent = [rank for rank in range(self.heartbeats.processes) if beats and rank not in beats]
        late |= dict.fromkeys(silent, "has never been heard of")
        return [f"process {rank} {why}: the others wait for it" for rank, why in sorted(late.items())]

    def about_data(self, now: float) -> list[str]:
        data, processes, pids, lines = self.trainer.datamodule, self.trainer.world_size, reader_pids(), []  # type: ignore[attr-defined]
        if isinstance(data, StreamedData):
            few = len(data.shards) < max(1, data.workers) * processes
            lines.append(
                f"{len(data.shards)} shards, {data.workers} workers in each of {processes} processes"
                + ": too few shards, some workers have none; write more and smaller ones" * few
            )
        for pid in self.usage.keys() - set(pids):
            lines.append(f"worker {pid} is gone: see what was said before, or whether memory ran out")
        seconds = now - self.usage_at
        return lines + [f"worker {pid} {describe_process(pid, self.usage.get(pid), seconds)}" for pid in pids]


def exit_stalled() -> NoReturn:
    """Exit at once: the main thread hangs, and would not see an exception. Workers would outlive it, so are killed."""
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    os._exit(STALLED)
