"""Shares units of work among any number of processes through a folder, without ranks or collectives.

A process takes a lease on a unit by creating a file, and touches the file while it works. A lease that was not touched
for a minute, or whose process no longer runs on this machine, was left by a dead process, and another one takes it
over. If two processes ever do the same unit, only time is lost: the result is the same, and is renamed into place.
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

STALE = 60.0  # seconds without a touch after which a lease's process counts as dead


@runtime_checkable
class Unit(Protocol):
    """A piece of work with a unique name, done once its result is in its place."""

    @property
    def name(self) -> str: ...
    def done(self) -> bool: ...
    def do(self) -> None: ...


def share(units: Sequence[Unit], leases: "Leases", *, seen: Callable[[], object], pause: float = 0.5) -> None:
    """Do the units that are not done or leased; returns when every unit is done, by whatever process.

    `seen` is called once for each unit, when it is known to be done.
    """
    left = list(units)
    while left:
        not_done = []
        for unit in left:
            if unit.done() or do_if_free(unit, leases):
                seen()
            else:
                not_done.append(unit)
        if left := not_done:
            time.sleep(pause)


def do_if_free(unit: Unit, leases: "Leases") -> bool:
    """Do a unit unless another process has its lease; returns whether this process did it."""
    with leases.take(unit.name) as mine:
        if not mine or unit.done():
            return False
        unit.do()
        return True


class Leases:
    """Leases as files in `folder`, on a disk that all processes share."""

    def __init__(self, folder: Path, *, stale: float = STALE) -> None:
        self.folder, self.stale = folder, stale

    @contextmanager
    def take(self, name: str) -> Iterator[bool]:
        """Yields whether this process has the lease, which is released at the end of the block.

        OSError where no lease can be written, as on a full disk.
        """
        path, token = self.folder / f"{name}.claim", secrets.token_hex(8)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not create(path, token) and not (self._abandoned(path) and take_over(path, token)):
            yield False
            return
        with touching(path, every=self.stale / 4):
            try:
                yield True
            finally:
                if owner(path).get("token") in (
                    token,
                    None,
                ):  # or another process took it over meanwhile
                    path.unlink(missing_ok=True)

    def _abandoned(self, path: Path) -> bool:
        """Whether a lease's process is dead; if its name cannot be read, by the lease's age alone."""
        try:
            if age(path) > self.stale:
                return True
        except FileNotFoundError:  # released just now
            return False
        process = owner(path)
        return process.get("machine") == files.machine() and not files.alive(process["pid"])


def create(path: Path, token: str) -> bool:
    """Write a new lease; returns False if there is one already. A lease that cannot be written whole is removed."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            json.dump({"machine": files.machine(), "pid": os.getpid(), "token": token}, file)
    except FileExistsError:
        return False
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    return True


def take_over(path: Path, token: str) -> bool:
    """Replace an abandoned lease. Of several processes that try, one succeeds, since a file is renamed once."""
    aside = path.with_name(f".{path.name}.{token}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    aside.unlink()
    return create(path, token)


def owner(path: Path) -> dict[str, Any]:
    """The content of a lease: machine, pid, token. Empty for a file that is missing, being written, or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("pid"), int) else {}


@contextmanager
def touching(path: Path, *, every: float) -> Iterator[None]:
    """Touch a file regularly from another thread until the block ends."""
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(every):
            try:
                os.utime(path)
            except FileNotFoundError:  # taken over while this machine slept
                return
            except OSError:  # a file system that does not answer for a moment
                continue

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def age(path: Path) -> float:
    """Seconds since a file was touched, by the file system's clock, which all machines share."""
    with files.temporary_path(path.with_name("now")) as probe:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
