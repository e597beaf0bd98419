"""A run's place in its data: saved, refused where it is of other data, and gone on from by any number of streams."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.stream import permutation
from open_kandinsky.data.stream.permutation import Intervals
from open_kandinsky.data.stream.plan import Plan, Rest, SourcePosition, StreamState, state_from_plain
from open_kandinsky.data.stream.tallies import Epoch, Plain, merge_stats


class Layout(NamedTuple):
    """Who reads: one stream for each worker of each process."""

    processes: int
    workers: int

    @property
    def streams(self) -> int:
        return self.processes * self.workers

    def __str__(self) -> str:
        return f"{self.processes} process(es) x {self.workers} worker(s)"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Of one process: where each of its streams is, how many batches it has drawn, and the tallies of open epochs."""

    places: Sequence[StreamState]
    drawn: int = 0
    tallies: dict[Epoch, Plain] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        tallies = [[*epoch, tally] for epoch, tally in self.tallies.items()]
        return {"places": [place.plain() for place in self.places], "drawn": self.drawn, "tallies": tallies}


def progress_of(plain: dict[str, Any]) -> Progress:
    """Undoes `Progress.plain`."""
    tallies = {(source, epoch): tally for source, epoch, tally in plain["tallies"]}
    return Progress(
        places=[state_from_plain(place) for place in plain["places"]], drawn=plain["drawn"], tallies=tallies
    )


def checkpoint(plan: Plan, layout: Layout, progress: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All that another run needs to go on. `progress`: of every process."""
    rest = [{epoch: torch.from_numpy(left) for epoch, left in one.items()} for one in plan.rest]
    return plan.facts() | {
        "layout": list(layout),
        "begins": list(plan.begins),
        "rest": rest,
        "progress": list(progress),
    }


def fresh(plan: Plan, workers: int) -> Progress:
    """At the plan's beginning."""
    begin = StreamState([SourcePosition(epoch) for epoch in plan.begins])
    return Progress(places=[begin] * workers)


def resumed(saved: dict[str, Any], plan: Plan, layout: Layout, rank: int) -> tuple[Plan, Progress]:
    """The plan to go on by, and where this process is in it. `plan`: of a run that begins now.

    Raises ValueError where the checkpoint is of other data, or of another order of it.
    """
    check(saved, plan.facts())
    before = Layout(*saved["layout"])
    rest = [{epoch: left.numpy() for epoch, left in one.items()} for one in saved["rest"]]
    old = replace(plan, streams=before.streams, begins=saved["begins"], rest=rest)
    progress = [progress_of(one) for one in saved["progress"]]
    if before == layout:
        return old, progress[rank]
    places = [place for one in progress for place in one.places]
    begins, rest = left(old, places)
    say(before, layout, rest)
    new = replace(plan, begins=begins, rest=rest)
    begin = StreamState([SourcePosition(epoch) for epoch in begins], drawn=max(place.drawn for place in places))
    tallies = together(progress) if rank == 0 else {}
    return new, Progress(places=[begin] * layout.workers, drawn=progress[0].drawn, tallies=tallies)


def check(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ValueError, saying what differs, where the order of `saved` is another one."""
    if "progress" not in saved:
        raise UserError(
            "the checkpoint is of a run with data in memory or in a cache: resume with the same data settings"
        )
    differs = [f"{name}={now[name]}, the checkpoint has {saved[name]}" for name in now if now[name] != saved[name]]
    if differs:
        raise UserError(
            f"the data's order is not the checkpoint's: {'; '.join(differs)}. Resume with the same shards and "
            "settings, or begin a new run from the weights"
        )


def left(plan: Plan, places: Sequence[StreamState]) -> tuple[list[int], list[Rest]]:
    """For each source the oldest epoch of which something is to come, and what is to come of all begun epochs."""
    begins, rest = [], []
    for source in range(len(plan.counts)):
        oldest = min(place.epochs()[source] for place in places)
        newest = max([*plan.rest[source], *(place.places[source].epoch for place in places)])
        begins.append(oldest)
        rest.append({epoch: left_of(plan, places, source, epoch) for epoch in range(oldest, newest + 1)})
    return begins, rest


def left_of(plan: Plan, places: Sequence[StreamState], source: int, epoch: int) -> Intervals:
    """What no stream has put into a batch, of one epoch."""
    parts = [waiting(place, source, epoch) for place in places]
    for stream, place in enumerate(places):
        here = place.places[source]
        if here.epoch <= epoch:
            share = plan.share(source, epoch, stream)
            parts.append(share.left(here) if here.epoch == epoch else share.spans)
    return permutation.merged(parts)


def waiting(place: StreamState, source: int, epoch: int) -> Intervals:
    """The samples that were given out and wait for their batch."""
    found = [(shard, at, at + 1) for s, e, shard, at in place.waiting if (s, e) == (source, epoch)]
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def together(progress: Sequence[Progress]) -> dict[Epoch, Plain]:
    """The tallies of all processes."""
    epochs = {epoch for one in progress for epoch in one.tallies}
    found = {epoch: [one.tallies[epoch] for one in progress if epoch in one.tallies] for epoch in sorted(epochs)}
    return {epoch: merge_stats(tallies, 1.0).plain() for epoch, tallies in found.items()}


def say(before: Layout, now: Layout, rest: Sequence[Rest]) -> None:
    """Once, by the first process."""
    what = [
        f"{permutation.size(some)} samples of epoch {epoch}" + (f" of source {source}" if len(rest) > 1 else "")
        for source, one in enumerate(rest)
        for epoch, some in one.items()
        if permutation.size(some)
    ]
    rank_zero_warn(
        f"the order of samples has changed: the checkpoint was made by {before}, and {now} go on. What remains "
        f"({', '.join(what)}) is shared out anew: none comes twice in an epoch, and none is lost"
    )
