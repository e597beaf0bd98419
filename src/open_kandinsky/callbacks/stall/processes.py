"""What a process that reads data is about, as Linux tells it in /proc; elsewhere, that it lives."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

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
