"""Work that any number of processes share through a folder: no ranks, no collectives, and nobody whom others wait for.

A process claims a unit by making a file, and keeps the file young while it works. A claim that has grown old, or whose
process is gone from this machine, was left by one that died: whoever finds it takes it over. Should two processes ever
do the same unit, nothing is lost but time: a unit's result is the same whoever makes it, and is renamed into its place.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

STALE = 60.0  # seconds without a sign of life


@runtime_checkable
class Unit(Protocol):
    """A piece of work with a name of its own, done once its result is in its place."""

    @property
    def name(self) -> str: ...
    def done(self) -> bool: ...
    def do(self) -> None: ...


def share(units: Sequence[Unit], claims: "Claims", *, seen: Callable[[], object], pause: float = 0.5) -> None:
    """Do what nobody has done or claimed; returns when all of it is done by somebody.

    `seen` is called once for each unit, when it is known to be done.
    """
    left = list(units)
    while left:
        others = []
        for unit in left:
            if unit.done() or attempt(unit, claims):
                seen()
            else:
                others.append(unit)
        if left := others:
            time.sleep(pause)


def attempt(unit: Unit, claims: "Claims") -> bool:
    """Whether this process did the unit."""
    with claims.claim(unit.name) as mine:
        if not mine or unit.done():
            return False
        unit.do()
        return True


class Claims:
    """Claims are files in `folder`, which all processes see."""

    def __init__(self, folder: Path, *, stale: float = STALE) -> None:
        self.folder, self.stale = folder, stale

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether it is ours, until the block ends."""
        path = self.folder / f"{name}.claim"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._made(path) and not (self._left(path) and self._taken_over(path)):
            yield False
            return
        with beating(path, every=self.stale / 4):
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)

    def _made(self, path: Path) -> bool:
        try:
            with open(path, "x", encoding="utf-8") as file:
                json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
        except FileExistsError:
            return False
        return True

    def _left(self, path: Path) -> bool:
        """Whether the claim's process is known to be dead."""
        try:
            old = age(path) > self.stale
            owner = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):  # given back just now, or not written yet
            return False
        return old or (owner["host"] == socket.gethostname() and not alive(owner["pid"]))

    def _taken_over(self, path: Path) -> bool:
        """One of those who find a claim left behind gets it: a file is renamed once."""
        aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
        try:
            path.rename(aside)
        except FileNotFoundError:
            return False
        aside.unlink()
        return self._made(path)


@contextmanager
def beating(path: Path, *, every: float) -> Iterator[None]:
    """Keeps a file young from another thread, so that long work is not taken for a dead process."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(every):
            try:
                os.utime(path)
            except FileNotFoundError:  # taken over while this machine slept
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def age(path: Path) -> float:
    """Seconds since a file was touched, by the file system's clock, which is the same for all machines."""
    probe = path.with_name(f".now.{socket.gethostname()}.{os.getpid()}")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether a process of this machine still works: one that is dead, and whose end nobody has asked for, does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # gone just now, or no Linux
        return True
    return state not in ("Z", "X")
