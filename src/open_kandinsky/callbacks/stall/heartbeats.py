"""Where each process is, in a small file for the others."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from open_kandinsky.core import files


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
