"""A training that stands still says why, and ends, rather than holding a cluster for nothing."""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, runtime_checkable

from lightning import Callback, LightningModule, Trainer

from open_kandinsky.callbacks.phases import Clock, phases
from open_kandinsky.callbacks.stall import doing as loop
from open_kandinsky.callbacks.stall.heartbeats import Beat, Heartbeats, laggards
from open_kandinsky.callbacks.stall.processes import Reading, reading, told

STALLED = 75  # the exit code: sysexits.h's EX_TEMPFAIL, "try again later"
OFTEN = 10  # looks in the shortest limit


@runtime_checkable
class Sharded(Protocol):
    """Data that is read from shards by workers."""

    shards: list[str]
    workers: int


class Watchdog(Callback):
    """Prints what is known when nothing ends for too long, and `stop_after` seconds later ends the process, code 75.

    A step, a validation's batch and a checkpoint are signs of life. Each has its own limit in seconds: `after` for a
    step, `first_after` for the first one (which opens the data and compiles), `validation_after` for a batch of a
    validation, `checkpoint_after`. It looks from a thread of its own and costs the training nothing. Python's
    interpreter must still run: a library that hangs and keeps its lock silences this too.
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
        self.limits = {
            loop.STEP: after,
            loop.FIRST: first_after,
            loop.VALIDATION: validation_after,
            loop.CHECKPOINT: checkpoint_after,
        }
        self.stop_after, self.folder, self.clock, self.stop = stop_after, folder, clock, stop or leave
        self.said: float | None = None  # when it spoke last
        self.over = threading.Event()
        self.thread: threading.Thread | None = None
        self.seen: dict[int, Reading | None] = {}  # of the processes that read, at the last look
        self.looked = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.watch(trainer)
        self.over.clear()
        self.thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self.thread.start()

    def watch(self, trainer: Trainer) -> None:
        """From now on, without a thread."""
        self.trainer, self.phases = trainer, phases(trainer)
        self.heartbeats = Heartbeats(self.folder, rank=trainer.global_rank, processes=trainer.world_size)
        self.step, self.first, self.validating, self.kind = trainer.global_step, True, False, loop.FIRST
        self.last = self.looked = self.clock()

    def _run(self) -> None:
        while not self.over.wait(min(self.limits.values()) / OFTEN):
            self.look()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.step, self.first = trainer.global_step, False
        self._alive()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validating = True
        self._alive()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._alive()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validating = False
        self._alive()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.over.set()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.over.set()

    def _alive(self) -> None:
        self.last = self.clock()

    def look(self) -> None:
        """Once; what the thread does again and again."""
        now, stack = self.clock(), loop.main_stack()
        at = loop.doing(self.phases.open, validating=self.validating, first=self.first, now=now)
        if self.kind == loop.CHECKPOINT != at.kind:  # a checkpoint has ended
            self._alive()
        self.kind = at.kind
        self.heartbeats.write(Beat(self.step, at.words, at.together or loop.in_collective(stack), time.time()))
        quiet = now - (max(self.last, at.since) if at.kind == loop.CHECKPOINT else self.last)
        if quiet < self.limits[at.kind]:
            if self.said is not None:
                self.say(f"it goes on, after step {self.step}")
            self.said, self.seen, self.looked = None, {pid: reading(pid) for pid in readers()}, now
        elif self.said is None:
            self.said = now
            self.say(self.why(at, stack, quiet, now))
        elif now - self.said >= self.stop_after:
            self.say(f"nothing for {quiet:.0f} s: it ends with exit code {STALLED}")
            self.stop()

    def say(self, message: str) -> None:
        print(f"watchdog, process {self.heartbeats.rank}: {message}", file=sys.stderr, flush=True)

    def why(self, at: loop.Doing, stack: list[str], quiet: float, now: float) -> str:
        """All that is known, in one message."""
        lines = [
            f"no {at.kind} has ended for {quiet:.0f} s, after step {self.step}",
            f"it is {at.words}, for {now - at.since:.0f} s"
            + (", and waits for other processes" * loop.in_collective(stack)),
            *self.about_others(),
            *(self.about_data(now) if "batch" in at.words else []),
            "the main thread is in",
            *(f"  {line}" for line in stack),
            f"unless something ends, it stops in {self.stop_after:.0f} s with exit code {STALLED}; "
            "callbacks.watchdog has the limits",
        ]
        return "\n  ".join(lines)

    def about_others(self) -> list[str]:
        beats = self.heartbeats.read()
        found = laggards(beats, now=time.time(), dead_after=float(self.limits[loop.STEP]))
        found |= {
            rank: "has never been heard of" for rank in range(self.heartbeats.processes) if beats and rank not in beats
        }
        return [f"process {rank} {why}: the others wait for it" for rank, why in sorted(found.items())]

    def about_data(self, now: float) -> list[str]:
        data, lines = self.trainer.datamodule, []  # type: ignore[attr-defined]
        if isinstance(data, Sharded):
            readers_wanted = max(1, data.workers) * self.trainer.world_size
            lines.append(
                f"{len(data.shards)} shards, {data.workers} workers in each of {self.trainer.world_size} processes"
            )
            if len(data.shards) < readers_wanted:
                lines[-1] += ": too few shards, some workers have none; write more and smaller ones"
        died = [pid for pid in self.seen if pid not in readers()]
        lines += [f"worker {pid} is gone: see what was said before, or whether memory ran out" for pid in died]
        return lines + [f"worker {pid} {told(pid, self.seen.get(pid), now - self.looked)}" for pid in readers()]


def readers() -> list[int]:
    """The data's worker processes; without any, this process itself."""
    children = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    return children or [os.getpid()]


def leave() -> NoReturn:
    """At once: the main thread hangs, and would not see an exception. Workers would outlive it."""
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    os._exit(STALLED)
