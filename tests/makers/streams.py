"""Shards and rows that are nothing but names, and runs of streams in one process that take turns as workers do."""

from functools import partial
from typing import NamedTuple

import torch

from open_kandinsky.core.errors import BadSample
from open_kandinsky.data.stream.layout import Layout, checkpoint, fresh, resume
from open_kandinsky.data.stream.plan import Plan
from open_kandinsky.data.stream.stream import Recipe, Stream


class Named(NamedTuple):
    key: str
    url: str


class NamedShards:
    """`unreadable`: keys that `read` cannot give. Notes what it was asked to read."""

    def __init__(self, counts, name="s", unreadable=()):
        self.counts, self.name, self.unreadable = counts, name, set(unreadable)
        self.asked = []

    def read(self, shard, wanted, stats):
        self.asked.append((shard, list(wanted)))
        for position in wanted:
            key = f"{self.name}{shard}/{position}"
            if key in self.unreadable:
                stats.add("unreadable", key=key, shard=f"{self.name}{shard}")
            else:
                yield position, Named(key, f"{self.name}{shard}")

    def keys(self):
        return [f"{self.name}{shard}/{row}" for shard, count in enumerate(self.counts) for row in range(count)]


UNDECODABLE = partial(BadSample, "undecodable")


class NamedRows:
    """`buckets`: how many there are; `undecodable`: keys that make no row, but an error. Notes what it decoded."""

    def __init__(self, buckets=1, undecodable=(), error=UNDECODABLE):
        self.buckets, self.undecodable, self.error = buckets, set(undecodable), error
        self.decoded = []

    def bucket(self, example):
        return sum(map(ord, example.key)) % self.buckets

    def row(self, example, bucket, draws):
        self.decoded.append(example.key)
        if example.key in self.undecodable:
            raise self.error(example.key)
        return {"key": example.key, "bucket": bucket, "drawn": torch.tensor(draws.random())}


def recipe(sources, rows=None, *, streams=1, weights=None, batch_size=3, buffer=4, seed=0, max_bad_share=1.0):
    plan = Plan(
        identities=[source.name for source in sources],
        counts=[source.counts for source in sources],
        seed=seed,
        buffer=buffer,
        streams=streams,
        first_epochs=[0] * len(sources),
        remaining=[{} for _ in sources],
    )
    return Recipe(
        plan=plan,
        sources=sources,
        weights=weights or [float(sum(source.counts)) for source in sources],
        prepare=rows or NamedRows(),
        batch_size=batch_size,
        max_bad_share=max_bad_share,
    )


class Run:
    """All processes of a run, each drawing a batch a step from its workers in turn."""

    def __init__(self, make, layout, saved=None):
        self.layout = layout
        asked = make(streams=layout.streams)
        begun = [(asked.plan, fresh(asked.plan, layout.workers))] * layout.processes
        if saved is not None:
            begun = [resume(saved, asked.plan, layout, rank) for rank in range(layout.processes)]
        self.plan, self.progress = begun[0][0], [progress for _, progress in begun]
        self.recipe = Recipe(**{**vars(asked), "plan": self.plan})
        self.streams = [
            [
                iter(Stream(self.recipe, number=rank * layout.workers + at, state=state))
                for at, state in enumerate(progress.states)
            ]
            for rank, progress in enumerate(self.progress)
        ]

    def step(self):
        """A batch of each process."""
        return [self.draw(rank) for rank in range(self.layout.processes)]

    def draw(self, rank):
        progress = self.progress[rank]
        turn = progress.batches % self.layout.workers
        made = next(self.streams[rank][turn])
        states = [made.state if at == turn else state for at, state in enumerate(progress.states)]
        self.progress[rank] = type(progress)(states=states, batches=progress.batches + 1)
        return made.batch["key"]

    def saved(self):
        return checkpoint(self.plan, self.layout, [progress.plain() for progress in self.progress])


__all__ = ["Layout", "Named", "NamedRows", "NamedShards", "Run", "recipe"]
