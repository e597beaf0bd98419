"""Data sets held in memory: tables of tensors, the order of their rows, and a loader that can be resumed.

An `Order` says which rows make up each batch of an epoch, for each of several processes: in the table's order for
validation, shuffled, or shuffled so that no caption comes twice in a batch. `EpochIterator` cuts an endless run of
batches into a trainer's epochs and knows what was trained with; streams use it too.
"""

import random
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from open_kandinsky.core.distributed import rank_and_world_size, world_size
from open_kandinsky.core.errors import UserError

Batch = dict[str, Any]


class OrderPosition(NamedTuple):
    """The epoch, and how much of it all processes together have seen: rows, or batches where the order counts these."""

    epoch: int
    seen: int


@runtime_checkable
class Order(Protocol):
    """Row numbers of each batch of an epoch.

    `count`: batches an epoch, in each process; `step`: by how much `OrderPosition.seen` grows with a batch in each.
    """

    count: int
    step: int

    def batches(self, epoch: int, seen: int) -> Iterator[list[int]]:
        """This process's batches of an epoch, without what all processes have `seen` of it."""
        ...

    def begin(self, last: OrderPosition) -> OrderPosition:
        """Where an epoch of the trainer begins, when the one before has ended at `last`."""
        ...

    def facts(self) -> dict[str, int]:
        """What must be equal for a position to mean the same."""
        ...


class FixedOrder:
    """First to last, the last batch short: for validation. Every batch of all rows is divided among the processes."""

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
    """Every row once an epoch in full batches, in an order that `seed` and the epoch decide. It counts rows."""

    def __init__(self, *, rows: int, batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.count, self.step = whole_batches(rows, batch_size), world_size() * batch_size

    def batches(self, epoch: int, seen: int) -> Iterator[list[int]]:
        rows = torch.randperm(self.rows, generator=generator(self.seed, epoch)).tolist()
        full = (rows[at : at + self.batch_size] for at in range(seen, self.rows, self.batch_size))
        return of_this_process(full, (self.rows - seen) // self.step)

    def begin(self, last: OrderPosition) -> OrderPosition:
        return last

    def facts(self) -> dict[str, int]:
        return {"rows": self.rows, "seed": self.seed}


class DistinctOrder:
    """No caption twice in a batch, and rows of one group (hard negatives) together: for contrastive training.

    Copies of a caption are spread evenly over the epoch; a row that does not fit waits for the next batch. A batch
    is short only where groups do not fill it. Rows that fill no batch at the end of an epoch are dropped. It counts
    batches.
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
        batches = sum(1 for _ in self.draw(generator(seed, 0)))
        if batches < world_size():
            raise UserError(
                f"no batch of batch_size={batch_size} without a caption twice: {len(set(captions))} distinct captions "
                f"in {len(captions)} samples, {world_size()} process(es); lower batch_size"
            )
        self.step = world_size()
        self.count = batches // self.step

    def batches(self, epoch: int, seen: int) -> Iterator[list[int]]:
        """The rest of `count` batches; a draw that has fewer is followed by another draw of the same rows."""
        rng = generator(self.seed, epoch)
        endless = chain.from_iterable(self.draw(rng) for _ in iter(int, 1))
        return of_this_process(islice(endless, seen, None), max(0, self.count - -(-seen // self.step)))

    def begin(self, last: OrderPosition) -> OrderPosition:
        return last

    def facts(self) -> dict[str, int]:
        return {"rows": len(self.captions), "seed": self.seed, "batch_size": self.batch_size}

    def draw(self, rng: torch.Generator) -> Iterator[list[int]]:
        """The batches of one random order of all rows."""
        waiting = spread(self.units, self.captions, rng)
        while waiting:
            batch, waiting = self.fill(waiting)
            if len(batch) <= self.batch_size - self.largest:
                return
            yield batch

    def fill(self, waiting: list[list[int]]) -> tuple[list[int], list[list[int]]]:
        """One batch of the first units that fit together, and the other units in their order."""
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
    """Lists of rows that belong in one batch. A group that has a caption twice makes two lists, one for each copy."""
    units: dict[Hashable, list[int]] = defaultdict(list)
    copies: dict[Hashable, int] = defaultdict(int)
    for row, (caption, group) in enumerate(zip(captions, groups, strict=True)):
        copy = copies[group, caption]
        copies[group, caption] += 1
        units[("alone", row) if group is None else ("group", group, copy)].append(row)
    return list(units.values())


def spread(units: list[list[int]], captions: Sequence[str], rng: torch.Generator) -> list[list[int]]:
    """Shuffled units; those that begin with the same caption are evenly spaced, so that copies seldom meet."""
    alike: dict[str, list[int]] = defaultdict(list)
    for at in torch.randperm(len(units), generator=rng).tolist():
        first: int = units[at][0]
        alike[captions[first]].append(at)
    starts = torch.rand(len(alike), generator=rng, dtype=torch.float64).tolist()
    times = [0.0] * len(units)
    for start, copies in zip(starts, alike.values(), strict=True):
        for turn, at in enumerate(copies):
            times[at] = (turn + start) / len(copies)
    return [units[at] for at in sorted(range(len(units)), key=lambda at: times[at])]


def generator(seed: int, epoch: int) -> torch.Generator:
    """The random numbers of one epoch: hashed, because torch's CPU generator looks at 32 bits of its seed only."""
    return torch.Generator().manual_seed(random.Random(f"{seed}/{epoch}").getrandbits(32))


def of_this_process(batches: Iterator[list[int]], count: int) -> Iterator[list[int]]:
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

MAX_AHEAD = 4  # batches that a trainer may have fetched and not taken


class EpochIterator(Generic[T]):
    """Cuts an endless run of batches into epochs, and knows the state after the last batch that was trained with.

    `trained` says how many batches of its present epoch the trainer has taken; None: there is no trainer, and every
    batch that is fetched counts. A trainer may fetch batches ahead, and may begin in the middle of an epoch.
    """

    def __init__(self, *, start: T, length: int, trained: Callable[[], int | None]) -> None:
        self.length, self.trained = length, trained
        self.states = deque([start], maxlen=MAX_AHEAD)
        self.fetched = 0
        self.trained_before: int | None = None

    def iterate(self, batches: Iterator[tuple[Any, T]]) -> Iterator[Any]:
        """One epoch of a run of batches, each paired with the state after it."""
        self.fetched = 0
        return self.fetch(batches)

    def fetch(self, batches: Iterator[tuple[Any, T]]) -> Iterator[Any]:
        for _ in range(self.length):
            if self.fetched == 0:
                self.trained_before = self.trained()
            batch, state = next(batches)
            self.fetched += 1
            self.states.append(state)
            yield batch

    def last_fetched(self) -> T:
        """The state after the last batch that was fetched."""
        return self.states[-1]

    def last_trained(self) -> T:
        """The state after the last batch that was trained with."""
        trained = self.trained()
        if trained is None or self.trained_before is None or self.fetched == 0:
            return self.last_fetched()
        return self.states[-1 - (self.fetched - (trained - self.trained_before))]


@runtime_checkable
class Held(Protocol):
    """A set in memory; the same row may have another caption in another epoch."""

    @property
    def key(self) -> list[str]: ...
    def batch(self, rows: list[int], epoch: int) -> Batch: ...


class Table(NamedTuple):
    """A set in memory. `columns`: tensors of equal first dimension; float16 is widened when a batch is made."""

    columns: dict[str, Tensor]
    caption: list[str]
    key: list[str]

    def batch(self, rows: list[int], epoch: int) -> Batch:
        """One batch, as in data/batch.py, the same in any epoch: one index_select a column, floats as float32."""
        index = torch.tensor(rows)
        batch: Batch = {name: widened(column.index_select(0, index)) for name, column in self.columns.items()}
        return batch | {"caption": [self.caption[row] for row in rows], "key": [self.key[row] for row in rows]}


def widened(values: Tensor) -> Tensor:
    """float16 and bfloat16 to float32; other types as they are."""
    return values.float() if values.is_floating_point() else values


class MemoryLoader:
    """Batches of a table in an order. An epoch has `order.count` batches and begins where the one before ended.

    Not a torch DataLoader: one indexed copy is faster than workers, and Lightning would put its own sampler into it.
    `trained` says how many batches of its present epoch the trainer has taken, None without one.
    """

    def __init__(self, *, table: Held, order: Order, trained: Callable[[], int | None]) -> None:
        self.table, self.order = table, order
        self.epochs = EpochIterator(start=OrderPosition(0, 0), length=order.count, trained=trained)

    def __len__(self) -> int:
        return self.order.count

    def __iter__(self) -> Iterator[Batch]:
        return self.epochs.iterate(self.endless(self.order.begin(self.epochs.last_fetched())))

    def endless(self, start: OrderPosition) -> Iterator[tuple[Batch, OrderPosition]]:
        """All batches from a position on, and the position after each; rows that fill no batch are left out."""
        epoch, seen = start
        while True:
            for rows in self.order.batches(epoch, seen):
                seen += self.order.step
                yield self.table.batch(rows, epoch), OrderPosition(epoch, seen)
            epoch, seen = epoch + 1, 0

    def close(self) -> None:
        """Does nothing: there are no workers."""

    def saved(self) -> dict[str, Any]:
        """The part of the data module's checkpoint; a stream's loader has the same method."""
        return self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was trained with."""
        return self.epochs.last_trained()._asdict() | {"step": self.order.step, "order": self.order.facts()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues there, with any number of processes. Raises UserError where the checkpoint is of another order."""
        check(state_dict, self.order.facts())
        place = OrderPosition(state_dict["epoch"], state_dict["seen"])
        if state_dict["step"] != self.order.step and place.seen:
            rank_zero_warn(
                f"processes or batch_size have changed within epoch {place.epoch}: a step takes {self.order.step} "
                f"and took {state_dict['step']}. None of the {place.seen} that were seen comes again in this epoch"
            )
        self.epochs = EpochIterator(start=place, length=self.order.count, trained=self.epochs.trained)


def check(saved: dict[str, Any], facts: dict[str, int]) -> None:
    """Raises UserError, naming what differs, where a checkpoint is of another order than `facts` describe."""
    if "order" not in saved:
        raise UserError(
            f"the checkpoint has no place in a set in memory, but {sorted(saved)}: resume with the data settings it "
            "was made with, or begin a new run from its weights"
        )
    if saved["order"] != facts:
        raise UserError(
            f"the data's order is not the checkpoint's: {facts}, the checkpoint has {saved['order']}. Resume with the "
            "same data and settings, or begin a new run from its weights"
        )
