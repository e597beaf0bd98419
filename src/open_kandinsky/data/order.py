"""Which rows of a set in memory make up each batch of an epoch.

An endless run of batches, cut into the passes that a trainer asks for.
"""

import random
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch

from open_kandinsky.core.distributed import rank_and_world_size, world_size
from open_kandinsky.core.errors import UserError


class OrderPosition(NamedTuple):
    """In a run: the epoch, and how much of it all processes together have seen, in the order's unit."""

    epoch: int
    seen: int


@runtime_checkable
class Order(Protocol):
    """Row numbers of each batch of an epoch. `count`: batches a pass; `step`: what all processes see with one each."""

    count: int
    step: int

    def batches(self, epoch: int, seen: int) -> Iterator[list[int]]:
        """This process's batches of what is left of an epoch."""
        ...

    def begin(self, last: OrderPosition) -> OrderPosition:
        """Where a pass begins, when the one before has ended at `last`."""
        ...

    def facts(self) -> dict[str, int]:
        """What must be the same for a place to mean the same."""
        ...


class FixedOrder:
    """First to last, the last batch short: for validation. Each process has its share of every batch of them all."""

    def __init__(self, *, rows: int, batch_size: int) -> None:
        self.rows, self.batch_size = rows, batch_size
        self.step = batch_size * world_size()
        self.count = -(-rows // self.step)

    def batches(self, epoch: int, seen: int) -> Iterator[list[int]]:
        rank, processes = rank_and_world_size()
        for at in range(0, self.rows, self.step):
            share = -(-min(self.step, self.rows - at) // processes)  # the last wraps round: no process waits
            yield [row % self.rows for row in range(at + rank * share, at + (rank + 1) * share)]

    def begin(self, last: OrderPosition) -> OrderPosition:
        return OrderPosition(0, 0)

    def facts(self) -> dict[str, int]:
        return {}


class ShuffledOrder:
    """Every row once an epoch in full batches, in an order that `seed` and the epoch decide. Its unit is a row."""

    def __init__(self, *, rows: int, batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.count, self.step = whole_batches(rows, batch_size), world_size() * batch_size

    def batches(self, epoch: int, seen: int) -> Iterator[list[int]]:
        rows = torch.randperm(self.rows, generator=generator(self.seed, epoch)).tolist()
        full = (rows[at : at + self.batch_size] for at in range(seen, self.rows, self.batch_size))
        return own(full, (self.rows - seen) // self.step)

    def begin(self, last: OrderPosition) -> OrderPosition:
        return last

    def facts(self) -> dict[str, int]:
        return {"rows": self.rows, "seed": self.seed}


class DistinctOrder:
    """No caption twice in a batch, and rows of one group (hard negatives) together: for contrastive training.

    Copies of a caption are spread evenly over the epoch; a row that does not fit waits for the next batch. A batch
    is short only where groups do not fill it. What is left at the end of an epoch is dropped. Its unit is a batch.
    """

    def __init__(
        self, *, captions: Sequence[str], groups: Sequence[Hashable | None], batch_size: int, seed: int
    ) -> None:
        self.captions, self.batch_size, self.seed = captions, batch_size, seed
        self.units = grouped(captions, groups)
        self.largest = max(len(unit) for unit in self.units)
        self.smallest = min(len(unit) for unit in self.units)
        if self.largest > batch_size:
            raise UserError(f"a group has {self.largest} samples, more than batch_size={batch_size}: raise batch_size")
        drawn = sum(1 for _ in self.draw(generator(seed, 0)))
        if drawn < world_size():
            raise UserError(
                f"no batch of batch_size={batch_size} without a caption twice: {len(set(captions))} distinct captions "
                f"in {len(captions)} samples, {world_size()} process(es); lower batch_size"
            )
        self.step = world_size()
        self.count = drawn // self.step

    def batches(self, epoch: int, seen: int) -> Iterator[list[int]]:
        """What is left of `count`; an unlucky draw that has fewer goes on with another of the same samples."""
        draws = generator(self.seed, epoch)
        endless = chain.from_iterable(self.draw(draws) for _ in iter(int, 1))
        return own(islice(endless, seen, None), max(0, self.count - -(-seen // self.step)))

    def begin(self, last: OrderPosition) -> OrderPosition:
        return last

    def facts(self) -> dict[str, int]:
        return {"rows": len(self.captions), "seed": self.seed, "batch_size": self.batch_size}

    def draw(self, draws: torch.Generator) -> Iterator[list[int]]:
        waiting = spread(self.units, self.captions, draws)
        while waiting:
            batch, waiting = self.fill(waiting)
            if len(batch) <= self.batch_size - self.largest:
                return
            yield batch

    def fill(self, waiting: list[list[int]]) -> tuple[list[int], list[list[int]]]:
        """The first units that fit together, and the rest in their order."""
        batch: list[int] = []
        used: set[str] = set()
        passed: list[list[int]] = []
        for at, unit in enumerate(waiting):
            if len(batch) + self.smallest > self.batch_size:
                return batch, passed + waiting[at:]
            captions = {self.captions[row] for row in unit}
            if len(batch) + len(unit) > self.batch_size or captions & used:
                passed.append(unit)
            else:
                batch, used = batch + unit, used | captions
        return batch, passed


def grouped(captions: Sequence[str], groups: Sequence[Hashable | None]) -> list[list[int]]:
    """Rows that belong in one batch. A group with a caption twice makes two: the second copy cannot be beside it."""
    units: dict[Hashable, list[int]] = defaultdict(list)
    copies: dict[Hashable, int] = defaultdict(int)
    for row, (caption, group) in enumerate(zip(captions, groups, strict=True)):
        copy = copies[group, caption]
        copies[group, caption] += 1
        units[("alone", row) if group is None else ("group", group, copy)].append(row)
    return list(units.values())


def spread(units: list[list[int]], captions: Sequence[str], draws: torch.Generator) -> list[list[int]]:
    """Shuffled, with the units that open with one caption evenly spaced, so that copies seldom meet."""
    alike: dict[str, list[int]] = defaultdict(list)
    for at in torch.randperm(len(units), generator=draws).tolist():
        first: int = units[at][0]
        alike[captions[first]].append(at)
    starts = torch.rand(len(alike), generator=draws, dtype=torch.float64).tolist()
    times = [0.0] * len(units)
    for start, copies in zip(starts, alike.values(), strict=True):
        for turn, at in enumerate(copies):
            times[at] = (turn + start) / len(copies)
    return [units[at] for at in sorted(range(len(units)), key=lambda at: times[at])]


def generator(seed: int, epoch: int) -> torch.Generator:
    """The random numbers of one epoch: hashed, because torch's CPU generator looks at 32 bits of its seed only."""
    return torch.Generator().manual_seed(random.Random(f"{seed}/{epoch}").getrandbits(32))


def own(batches: Iterator[list[int]], count: int) -> Iterator[list[int]]:
    """This process's `count` batches of those that all processes share."""
    rank, processes = rank_and_world_size()
    return islice(batches, rank, count * processes, processes)


def whole_batches(rows: int, batch_size: int) -> int:
    """Full batches a process. Raises ValueError where there is none."""
    count = rows // (batch_size * world_size())
    if count == 0:
        raise UserError(
            f"{rows} samples do not fill one batch of batch_size={batch_size} in each of {world_size()} process(es): "
            "lower batch_size, or give more samples"
        )
    return count


T = TypeVar("T")

KEPT = 4


class EpochIterator(Generic[T]):
    """Knows the place after the last batch that was trained with, of the last few that were drawn.

    `trained` says how many batches of its present epoch the trainer has taken; None: there is no trainer, and every
    batch that is drawn counts. A trainer may have drawn more than it took, and may begin in the middle of an epoch.
    """

    def __init__(self, *, begin: T, length: int, trained: Callable[[], int | None]) -> None:
        self.length, self.trained = length, trained
        self.places = deque([begin], maxlen=KEPT)
        self.drawn = 0
        self.before: int | None = None

    def walk(self, batches: Iterator[tuple[Any, T]]) -> Iterator[Any]:
        """One pass over a run of batches and the places after them."""
        self.drawn = 0
        return self.draw(batches)

    def draw(self, batches: Iterator[tuple[Any, T]]) -> Iterator[Any]:
        for _ in range(self.length):
            if self.drawn == 0:
                self.before = self.trained()
            batch, place = next(batches)
            self.drawn += 1
            self.places.append(place)
            yield batch

    def last(self) -> T:
        """After the last batch that was drawn."""
        return self.places[-1]

    def place(self) -> T:
        """After the last batch that was trained with."""
        trained = self.trained()
        if trained is None or self.before is None or self.drawn == 0:
            return self.last()
        return self.places[-1 - (self.drawn - (trained - self.before))]
