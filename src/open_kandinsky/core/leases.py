"""Units of work that any number of processes share through a folder, without ranks or collectives.

A process takes a lease on a unit by making a file, and touches the file while it works. A lease that has grown old, or
whose process no longer runs on this machine, was left by a process that died, and the next one takes it over. If two
processes ever do the same unit, only time is lost: the result is the same, and is renamed into its place.
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from open_kandinsky.core import files

STALE = 60.0  # seconds without a sign of life


@runtime_checkable
class Unit(Protocol):
    """A piece of work with a name of its own, done once its result is in its place."""

    @property
    def name(self) -> str: ...
    def done(self) -> bool: ...
    def do(self) -> None: ...


def share(units: Sequence[Unit], leases: "Leases", *, seen: Callable[[], object], pause: float = 0.5) -> None:
    """Do the units that nobody has done or taken; returns when every unit is done, by whatever process.

    `seen` is called once for each unit, when it is known to be done.
    """
    left = list(units)
    while left:
        others = []
        for unit in left:
            if unit.done() or attempt(unit, leases):
                seen()
            else:
                others.append(unit)
        if left := others:
            time.sleep(pause)


def attempt(unit: Unit, leases: "Leases") -> bool:
    """Whether this process did the unit."""
    with leases.take(unit.name) as mine:
        if not mine or unit.done():
            return False
        unit.do()
        return True


class Leases:
    """Leases are files in `folder`, which all processes see."""

    def __init__(self, folder: Path, *, stale: float = STALE) -> None:
        self.folder, self.stale = folder, stale

    @contextmanager
    def take(self, name: str) -> Iterator[bool]:
        """Yields whether this process holds the lease, which it gives back when the block ends.

        OSError where no lease can be written, as on a full disk.
        """
        path, token = self.folder / f"{name}.claim", secrets.token_hex(8)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not made(path, token) and not (self._left(path) and taken_over(path, token)):
            yield False
            return
        with beating(path, every=self.stale / 4):
            try:
                yield True
            finally:
                if owner(path).get("token") in (token, None):  # else another took it over while this machine slept
                    path.unlink(missing_ok=True)

    def _left(self, path: Path) -> bool:
        """Whether the lease's process is known to be dead. An owner that cannot be read is judged by age alone."""
        try:
            if age(path) > self.stale:
                return True
        except FileNotFoundError:  # given back just now
            return False
        found = owner(path)
        return found.get("machine") == files.machine() and not files.alive(found["pid"])


def made(path: Path, token: str) -> bool:
    """Whether the lease is new, and ours. Nothing is left of one that could not be written."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            json.dump({"machine": files.machine(), "pid": os.getpid(), "token": token}, file)
    except FileExistsError:
        return False
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    return True


def taken_over(path: Path, token: str) -> bool:
    """Take over a lease that a dead process left: of several that try, one succeeds, since a file is renamed once."""
    aside = path.with_name(f".{path.name}.{token}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    aside.unlink()
    return made(path, token)


def owner(path: Path) -> dict[str, Any]:
    """What a lease file says of its process; empty where that is not known: it is gone, being written, or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("pid"), int) else {}


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
            except OSError:  # a store that does not answer for a moment
                continue

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def age(path: Path) -> float:
    """Seconds since a file was touched, by the file system's clock, which is the same for all machines."""
    with files.temporary_path(path.with_name("now")) as probe:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
