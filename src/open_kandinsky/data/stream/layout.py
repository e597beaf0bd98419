"""A run's position in its data: saved for all processes, and resumed by the same or another number of streams.

A layout is the number of processes and of workers in each; every worker is one stream. Resumed in the same layout, each
stream continues with the batches that it would have yielded. In another layout, what remains of every begun epoch is
divided anew among the streams, so that no sample comes twice in an epoch and none is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.stream import permutation
from open_kandinsky.data.stream.permutation import Intervals
from open_kandinsky.data.stream.plan import Plan, Remaining, SourcePosition, StreamState, state_from_plain
from open_kandinsky.data.tar.stats import Epoch, Plain, merge_epochs


class Layout(NamedTuple):
    """How many read: one stream for each worker of each process."""

    processes: int
    workers: int

    @property
    def streams(self) -> int:
        return self.processes * self.workers

    def __str__(self) -> str:
        return f"{self.processes} process(es) x {self.workers} worker(s)"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Of one process: the states of its streams, how many batches were drawn, and the statistics of open epochs."""

    states: Sequence[StreamState]
    batches: int = 0
    stats: dict[Epoch, Plain] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        stats = [[*epoch, counted] for epoch, counted in self.stats.items()]
        return {"places": [state.plain() for state in self.states], "drawn": self.batches, "tallies": stats}


def progress_from_plain(plain: dict[str, Any]) -> Progress:
    """The inverse of `Progress.plain`."""
    stats = {(source, epoch): counted for source, epoch, counted in plain["tallies"]}
    return Progress(states=[state_from_plain(state) for state in plain["places"]], batches=plain["drawn"], stats=stats)


def checkpoint(plan: Plan, layout: Layout, progress: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All that another run needs to continue. `progress`: of every process, as `Progress.plain` gives it."""
    remaining = [{epoch: torch.from_numpy(some) for epoch, some in one.items()} for one in plan.remaining]
    position = {"begins": list(plan.first_epochs), "rest": remaining, "progress": list(progress)}
    return plan.facts() | {"layout": list(layout)} | position


def fresh(plan: Plan, workers: int) -> Progress:
    """At the plan's beginning."""
    return Progress(states=[StreamState([SourcePosition(epoch) for epoch in plan.first_epochs])] * workers)


def resume(saved: dict[str, Any], plan: Plan, layout: Layout, rank: int) -> tuple[Plan, Progress]:
    """The plan of a resumed run, and the progress of process `rank` in it. `plan`: as a run that begins now has it.

    Raises UserError where the checkpoint is of other data, or of another order of it.
    """
    check(saved, plan.facts())
    saved_layout = Layout(*saved["layout"])
    remaining = [{epoch: some.numpy() for epoch, some in one.items()} for one in saved["rest"]]
    old = replace(plan, streams=saved_layout.streams, first_epochs=saved["begins"], remaining=remaining)
    progress = [progress_from_plain(one) for one in saved["progress"]]
    if saved_layout == layout:
        return old, progress[rank]
    states = [state for one in progress for state in one.states]
    first_epochs, remaining = remaining_samples(old, states)
    warn_of_new_layout(saved_layout, layout, remaining)
    start = StreamState([SourcePosition(epoch) for epoch in first_epochs], max(state.draws for state in states))
    counted = merge_epochs([one.stats for one in progress], 1.0) if rank == 0 else {}
    stats = {epoch: total.plain() for epoch, total in counted.items()}
    resumed = Progress(states=[start] * layout.workers, batches=progress[0].batches, stats=stats)
    return replace(plan, first_epochs=first_epochs, remaining=remaining), resumed


def check(saved: dict[str, Any], facts: dict[str, Any]) -> None:
    """Raises UserError, naming what differs, where a checkpoint is of another order of samples than `facts` say."""
    if "progress" not in saved:
        raise UserError(
            "the checkpoint is of a run with data in memory or in a cache: resume with the same data settings"
        )
    differs = [f"{name}={now}, the checkpoint has {saved[name]}" for name, now in facts.items() if now != saved[name]]
    if differs:
        raise UserError(
            f"the data's order is not the checkpoint's: {'; '.join(differs)}. Resume with the same shards and "
            "settings, or begin a new run from the weights"
        )


def remaining_samples(plan: Plan, states: Sequence[StreamState]) -> tuple[list[int], list[Remaining]]:
    """For each source the oldest epoch of which samples are to come, and the samples to come of all begun epochs."""
    first_epochs, remaining = [], []
    for source in range(len(plan.counts)):
        oldest = min(state.oldest_epochs()[source] for state in states)
        newest = max([*plan.remaining[source], *(state.positions[source].epoch for state in states)])
        first_epochs.append(oldest)
        remaining.append({e: remaining_of_epoch(plan, states, source, e) for e in range(oldest, newest + 1)})
    return first_epochs, remaining


def remaining_of_epoch(plan: Plan, states: Sequence[StreamState], source: int, epoch: int) -> Intervals:
    """The samples of one epoch that no stream has put into a batch: not emitted yet, or waiting for their batch."""
    waiting = [(shard, at, at + 1) for one in states for s, e, shard, at in one.waiting if (s, e) == (source, epoch)]
    parts = [np.array(waiting, dtype=np.int64).reshape(-1, 3)]
    for stream, state in enumerate(states):
        position = state.positions[source]
        if position.epoch <= epoch:
            mine = plan.assignment(source, epoch, stream)
            parts.append(mine.remaining(position) if position.epoch == epoch else mine.intervals)
    return permutation.merge(parts)


def warn_of_new_layout(before: Layout, now: Layout, remaining: Sequence[Remaining]) -> None:
    """Once, by the first process."""
    what = [
        f"{permutation.total(some)} samples of epoch {epoch}" + (f" of source {source}" if len(remaining) > 1 else "")
        for source, one in enumerate(remaining)
        for epoch, some in one.items()
        if permutation.total(some)
    ]
    rank_zero_warn(
        f"the order of samples has changed: the checkpoint was made by {before}, and {now} go on. What remains "
        f"({', '.join(what)}) is shared out anew: none comes twice in an epoch, and none is lost"
    )
