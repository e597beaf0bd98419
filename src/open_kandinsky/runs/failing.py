"""When one of several processes fails: it says why, once, and the others end."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from open_kandinsky.runs.launch import STARTED

NOTE = ".failed"  # in the run's folder: which process failed first
EVERY = 5.0  # seconds between looks


@contextmanager
def together(trainer: Any, run_dir: Path) -> Iterator[None]:
    """Around what all processes of a training do.

    The first one that fails leaves a note, and its error goes on, after a line that numbers it. All others end with one
    line: by an error of their own (a connection that was closed), or, where they wait for it in a collective, because
    they saw the note.
    """
    if trainer.world_size == 1:
        yield
        return
    # Of this attempt: where processes are started at once, one may be here before the first has tidied up.
    note, over = run_dir / (NOTE + os.environ.get(STARTED, "")), Event()
    if trainer.is_global_zero:
        for earlier in run_dir.glob(f"{NOTE}*"):
            earlier.unlink()
    Thread(target=watch, args=(note, trainer, over), daemon=True).start()
    try:
        yield
    except Exception as error:
        over.set()
        if not first(note, trainer.global_rank):
            leave(trainer, note)
        print(f"process {trainer.global_rank} of {trainer.world_size} failed:", file=sys.stderr, flush=True)
        end_children(trainer)
        raise error
    finally:
        over.set()


def first(note: Path, rank: int) -> bool:
    """Whether no other process has failed before."""
    try:
        with open(note, "x") as file:
            file.write(str(rank))
    except FileExistsError:
        return False
    except OSError:  # a disk that is full may be the very failure
        return True
    return True


def watch(note: Path, trainer: Any, over: Event) -> None:
    """End this process some seconds after another one has failed, if it has not ended by itself."""
    while not over.wait(EVERY):
        if note.exists() and not over.wait(EVERY):
            leave(trainer, note)


def leave(trainer: Any, note: Path) -> None:
    """At once: what waits in a collective cannot be interrupted."""
    told = f"process {trainer.global_rank} of {trainer.world_size} ends: process {note.read_text()} has failed"
    print(told, file=sys.stderr, flush=True)
    end_children(trainer)
    os._exit(1)


def end_children(trainer: Any) -> None:
    """Those that Lightning started from this process."""
    launcher = trainer.strategy.launcher
    if launcher is not None and getattr(launcher, "procs", None):
        launcher.kill(signal.SIGKILL)
