"""What a process that reads data is about, as Linux tells it in /proc; elsewhere, that it lives.

Where each process is, in a small file for the others.

What the loop does at this moment, from the phases that are open, and the lines of Python that it is in.

A training that stands still says why, and ends, rather than holding a cluster for nothing.
"""

import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol, runtime_checkable

from lightning import Callback, LightningModule, Trainer

from open_kandinsky.callbacks.phases import SAVING, WAITING, Clock, Phase, phases
from open_kandinsky.core import files

STATES = {"R": "runs", "S": "sleeps", "D": "waits for a disk or network file", "Z": "has died", "T": "is stopped"}
NO_DATA = ("/dev/", "/proc/", "/sys/", "/usr/", "/lib")
NO_DATA_ENDS = (".so", ".py", ".pyc", ".log", ".csv", ".whl", ".zip")


class Reading(NamedTuple):
    """A moment of a process."""

    read: int  # bytes since it began, from files, pipes and sockets
    cpu: float  # seconds since it began


def reading(pid: int, proc: Path = Path("/proc")) -> Reading | None:
    """None where the system does not say, or the process is gone."""
    try:
        io = dict(line.split(": ") for line in (proc / str(pid) / "io").read_text().splitlines())
        after_name = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return Reading(int(io["rchar"]), (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK"))
    except (OSError, KeyError, ValueError, IndexError):
        return None


def state(pid: int, proc: Path = Path("/proc")) -> str:
    try:
        letter = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "has died or cannot be looked at"
    return STATES.get(letter, f"is in state {letter}")


def open_files(pid: int, proc: Path = Path("/proc")) -> list[str]:
    """Files that may be data: not libraries, code and devices. And how many connections are open."""
    links: list[str] = []
    for fd in listed(proc / str(pid) / "fd"):
        with suppress(OSError):  # closed meanwhile
            links.append(os.readlink(fd))
    files = {link for link in links if link.startswith("/") and not is_no_data(link)}
    sockets = sum(link.startswith("socket:") for link in links)
    return sorted(files) + ([f"{sockets} connections"] if sockets else [])


def listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def is_no_data(link: str) -> bool:
    return link.startswith(NO_DATA) or link.endswith((*NO_DATA_ENDS, "(deleted)"))


def told(pid: int, before: Reading | None, seconds: float) -> str:
    """One line: its state, what it has read since `before`, `seconds` ago, and the files that it holds open."""
    parts, now = [state(pid)], reading(pid)
    if before is not None and now is not None:
        megabytes, cpu = (now.read - before.read) / 1e6, now.cpu - before.cpu
        parts.append(f"read {megabytes:.1f} MB and computed {cpu:.1f} s in the last {seconds:.0f} s")
    if files := open_files(pid):
        parts.append(f"holds open {', '.join(files[:4])}" + (", ..." if len(files) > 4 else ""))
    return "; ".join(parts)


class Beat(NamedTuple):
    step: int
    doing: str
    waits: bool  # maybe for other processes
    at: float  # of the time of day


class Heartbeats:
    """`folder`/<number of the process>, written by its own and read by all. Of one process there is none."""

    def __init__(self, folder: str | Path, *, rank: int, processes: int) -> None:
        self.folder, self.rank, self.processes = Path(folder), rank, processes

    def write(self, beat: Beat) -> None:
        """A training that goes on does not end for want of a heartbeat, as when the disk is full."""
        if self.processes > 1:
            with suppress(OSError):
                files.write(self.folder / str(self.rank), json.dumps(beat._asdict()))

    def read(self) -> dict[int, Beat]:
        """Of all processes that have written."""
        found = {}
        for rank in range(self.processes if self.processes > 1 else 0):
            try:
                found[rank] = Beat(**json.loads((self.folder / str(rank)).read_text()))
            except (OSError, ValueError, TypeError):
                continue
        return found


def laggards(beats: Mapping[int, Beat], *, now: float, dead_after: float) -> dict[int, str]:
    """The processes that the others wait for, and why it is thought that they do.

    A process that has stopped writing is gone. One that is steps behind holds the others up. Of those at the same
    step, it is the ones that do not wait for others.
    """
    if silent := {r: beat for r, beat in beats.items() if now - beat.at > dead_after}:
        return {rank: f"has not been heard of for {now - beat.at:.0f} s" for rank, beat in silent.items()}
    first = max((beat.step for beat in beats.values()), default=0)
    if behind := {r: beat for r, beat in beats.items() if beat.step < first}:
        return {rank: f"is at step {beat.step}, {beat.doing}" for rank, beat in behind.items()}
    busy = {r: beat for r, beat in beats.items() if not beat.waits}
    return {rank: f"is {beat.doing}" for rank, beat in busy.items()} if len(busy) < len(beats) else {}


STEP, VALIDATION, CHECKPOINT, FIRST = "step", "validation", "checkpoint", "first step"  # each has a limit of its own
FRAMES = 12  # innermost lines of the stack

WORDS = {  # the end of a phase's name
    "training_step": "in the forward pass",
    "validation_step": "in the forward pass of a validation",
    "optimizer_step": "in an optimiser's step",
    "batch_to_device": "copying a batch to the device",
    "val_next": "waiting for a batch of the validation set",
}
TOGETHER = {  # where processes wait for each other
    "backward": "in the backward pass, which ends in all processes together",
    "run_training_epoch": "between two steps, where processes meet",
}


class Activity(NamedTuple):
    kind: str  # STEP, VALIDATION, CHECKPOINT or FIRST
    words: str
    since: float  # by the clock of the phases
    together: bool  # it may be other processes that it waits for


def activity(phases: Sequence[Phase], *, validating: bool, first: bool, now: float) -> Activity:
    """`phases`: the open ones, outermost first."""
    saving = [phase for phase in phases if phase.name == SAVING]
    waiting = [phase for phase in phases if phase.name == WAITING]
    kind = CHECKPOINT if saving else VALIDATION if validating else FIRST if first else STEP
    if saving:
        return Activity(kind, "writing a checkpoint", saving[-1].since, together=False)
    if waiting:
        return Activity(kind, "waiting for a batch", waiting[-1].since, together=False)
    if first and not phases:
        return Activity(kind, "getting ready: it opens the data", now, together=False)
    innermost = phases[-1] if phases else Phase("run_training_epoch", now)
    name = last_name(innermost.name)
    words = WORDS.get(name) or TOGETHER.get(name) or f"in {innermost.name}"
    return Activity(kind, words, innermost.since, together=name in TOGETHER)


def last_name(phase: str) -> str:
    """training_step, of "[Strategy]DDPStrategy.training_step"."""
    return phase.rpartition(".")[2]


def main_stack() -> list[str]:
    """The innermost lines of the main thread, each as file:line in function: code."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    frames = traceback.extract_stack(frame)[-FRAMES:] if frame is not None else []
    return [f"{each.filename}:{each.lineno} in {each.name}: {each.line}" for each in frames]


def in_collective(stack: Sequence[str]) -> bool:
    """Whether the main thread is in torch.distributed: it waits for other processes."""
    return any("torch/distributed/" in line for line in stack)


STALLED = 75  # the exit code: sysexits.h's EX_TEMPFAIL, "try again later"
OFTEN = 10  # looks in the shortest limit


@runtime_checkable
class StreamedData(Protocol):
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
            STEP: after,
            FIRST: first_after,
            VALIDATION: validation_after,
            CHECKPOINT: checkpoint_after,
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
        self.step, self.first, self.validating, self.kind = trainer.global_step, True, False, FIRST
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
        now, stack = self.clock(), main_stack()
        at = activity(self.phases.open, validating=self.validating, first=self.first, now=now)
        if self.kind == CHECKPOINT != at.kind:  # a checkpoint has ended
            self._alive()
        self.kind = at.kind
        self.heartbeats.write(Beat(self.step, at.words, at.together or in_collective(stack), time.time()))
        quiet = now - (max(self.last, at.since) if at.kind == CHECKPOINT else self.last)
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

    def why(self, at: Activity, stack: list[str], quiet: float, now: float) -> str:
        """All that is known, in one message."""
        lines = [
            f"no {at.kind} has ended for {quiet:.0f} s, after step {self.step}",
            f"it is {at.words}, for {now - at.since:.0f} s"
            + (", and waits for other processes" * in_collective(stack)),
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
        found = laggards(beats, now=time.time(), dead_after=float(self.limits[STEP]))
        found |= {
            rank: "has never been heard of" for rank in range(self.heartbeats.processes) if beats and rank not in beats
        }
        return [f"process {rank} {why}: the others wait for it" for rank, why in sorted(found.items())]

    def about_data(self, now: float) -> list[str]:
        data, lines = self.trainer.datamodule, []  # type: ignore[attr-defined]
        if isinstance(data, StreamedData):
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
