"""The state of a run's other processes, for the watchdog: heartbeat files of the ranks, /proc of the data's workers."""

import json
import multiprocessing
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from open_kandinsky.core import files

STATES = {"R": "runs", "S": "sleeps", "D": "waits for a disk or network file", "Z": "has died", "T": "is stopped"}
NO_DATA = ("/dev/", "/proc/", "/sys/", "/usr/", "/lib")
NO_DATA_ENDS = (".so", ".py", ".pyc", ".log", ".csv", ".whl", ".zip", "(deleted)")


class ProcessUsage(NamedTuple):
    """Since a process began."""

    read: int  # bytes, from files, pipes and sockets
    cpu: float  # seconds


def stat_fields(pid: int, proc: Path) -> list[str]:
    """/proc/PID/stat from the process's state on. OSError where the process is gone."""
    return (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()


def process_usage(pid: int, proc: Path = Path("/proc")) -> ProcessUsage | None:
    """None where the system does not say, or the process is gone."""
    try:
        io = dict(line.split(": ") for line in (proc / str(pid) / "io").read_text().splitlines())
        user, system = stat_fields(pid, proc)[11:13]
        return ProcessUsage(int(io["rchar"]), (int(user) + int(system)) / os.sysconf("SC_CLK_TCK"))
    except (OSError, KeyError, ValueError):
        return None


def process_state(pid: int, proc: Path = Path("/proc")) -> str:
    try:
        letter = stat_fields(pid, proc)[0]
    except (OSError, IndexError):
        return "has died or cannot be looked at"
    return STATES.get(letter, f"is in state {letter}")


def open_files(pid: int, proc: Path = Path("/proc")) -> list[str]:
    """Files that may be data (not libraries, code and devices), and the number of open connections."""
    links: list[str] = []
    with suppress(OSError):  # the process is gone
        for descriptor in (proc / str(pid) / "fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                links.append(os.readlink(descriptor))
    paths = {link for link in links if link.startswith("/") and not link.startswith(NO_DATA)}
    sockets = sum(link.startswith("socket:") for link in links)
    data = sorted(path for path in paths if not path.endswith(NO_DATA_ENDS))
    return data + ([f"{sockets} connections"] if sockets else [])


def describe_process(pid: int, before: ProcessUsage | None, seconds: float) -> str:
    """One line: its state, its usage since `before`, `seconds` ago, and the files that it holds open."""
    parts, now = [process_state(pid)], process_usage(pid)
    if before is not None and now is not None:
        megabytes, cpu = (now.read - before.read) / 1e6, now.cpu - before.cpu
        parts.append(f"read {megabytes:.1f} MB and computed {cpu:.1f} s in the last {seconds:.0f} s")
    if paths := open_files(pid):
        parts.append(f"holds open {', '.join(paths[:4])}" + (", ..." if len(paths) > 4 else ""))
    return "; ".join(parts)


def reader_pids() -> list[int]:
    """The data's worker processes; without any, this process itself."""
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None] or [os.getpid()]


class Beat(NamedTuple):
    step: int
    activity: str
    waits: bool  # maybe for other processes
    at: float  # seconds since 1970


class Heartbeats:
    """A file per process, `folder`/RANK, with its last `Beat`; a run of one process has none."""

    def __init__(self, folder: str | Path, *, rank: int, processes: int) -> None:
        self.folder, self.rank, self.processes = Path(folder), rank, processes

    def write(self, beat: Beat) -> None:
        """Errors are ignored: a full disk must not end a training for want of a heartbeat."""
        if self.processes > 1:
            with suppress(OSError):
                files.write(self.folder / str(self.rank), json.dumps(beat._asdict()))

    def read(self) -> dict[int, Beat]:
        """The beat of each rank that has written one."""
        beats = {}
        for rank in range(self.processes if self.processes > 1 else 0):
            with suppress(OSError, ValueError, TypeError):
                beats[rank] = Beat(**json.loads((self.folder / str(rank)).read_text()))
        return beats


def laggards(beats: Mapping[int, Beat], *, now: float, dead_after: float) -> dict[int, str]:
    """The ranks that the others probably wait for, each with the reason.

    A process that has stopped writing is gone. One that is steps behind holds the others up. Among processes at the
    same step, it is those that do not wait for others.
    """
    if silent := {r: beat for r, beat in beats.items() if now - beat.at > dead_after}:
        return {rank: f"has not been heard of for {now - beat.at:.0f} s" for rank, beat in silent.items()}
    first = max((beat.step for beat in beats.values()), default=0)
    if behind := {r: beat for r, beat in beats.items() if beat.step < first}:
        return {rank: f"is at step {beat.step}, {beat.activity}" for rank, beat in behind.items()}
    busy = {r: beat for r, beat in beats.items() if not beat.waits}
    return {rank: f"is {beat.activity}" for rank, beat in busy.items()} if len(busy) < len(beats) else {}
