"""Sets held in memory: stacked tensors, a loader that draws batches from them, and the loader's place in a run."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.order import EpochIterator, Order, OrderPosition

Batch = dict[str, Any]


@runtime_checkable
class Held(Protocol):
    """A set in memory; what a row holds may differ from epoch to epoch."""

    @property
    def key(self) -> list[str]: ...
    def batch(self, rows: list[int], epoch: int) -> Batch: ...


class Table(NamedTuple):
    """A set in memory. `columns`: equal first dimensions; half precision stays half until a batch is made."""

    columns: dict[str, Tensor]
    caption: list[str]
    key: list[str]

    def batch(self, rows: list[int], epoch: int) -> Batch:
        """One batch, as in data/batch.py, the same in any epoch: one index_select a column, halves cast to float32."""
        index = torch.tensor(rows)
        batch: Batch = {name: widened(column.index_select(0, index)) for name, column in self.columns.items()}
        return batch | {"caption": [self.caption[row] for row in rows], "key": [self.key[row] for row in rows]}


def widened(values: Tensor) -> Tensor:
    """float16 and bfloat16 to float32; other types as they are."""
    return values.float() if values.is_floating_point() else values


class MemoryLoader:
    """Batches of a table in an order: passes of `order.count` batches, each going on where the one before ended.

    Not a torch DataLoader: one indexed copy is faster than workers, and Lightning would put its own sampler into it.
    `trained` says how many batches of its present epoch the trainer has taken, None without one.
    """

    def __init__(self, *, table: Held, order: Order, trained: Callable[[], int | None]) -> None:
        self.table, self.order = table, order
        self.passes = EpochIterator(begin=OrderPosition(0, 0), length=order.count, trained=trained)

    def __len__(self) -> int:
        return self.order.count

    def __iter__(self) -> Iterator[Batch]:
        return self.passes.walk(self.run(self.order.begin(self.passes.last())))

    def run(self, place: OrderPosition) -> Iterator[tuple[Batch, OrderPosition]]:
        """All batches from a place on, and the place after each; what does not fill a batch of all is left out."""
        epoch, seen = place
        while True:
            for rows in self.order.batches(epoch, seen):
                seen += self.order.step
                yield self.table.batch(rows, epoch), OrderPosition(epoch, seen)
            epoch, seen = epoch + 1, 0

    def close(self) -> None:
        """Nothing: no worker is to be ended."""

    def saved(self) -> dict[str, Any]:
        """For the data module's checkpoint, as a stream's loader has it."""
        return self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch that was trained with."""
        return self.passes.place()._asdict() | {"step": self.order.step, "order": self.order.facts()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on there, with any number of processes. Raises ValueError where the checkpoint is of another order."""
        check(state_dict, self.order.facts())
        place = OrderPosition(state_dict["epoch"], state_dict["seen"])
        if state_dict["step"] != self.order.step and place.seen:
            rank_zero_warn(
                f"processes or batch_size have changed within epoch {place.epoch}: a step takes {self.order.step} "
                f"and took {state_dict['step']}. None of the {place.seen} that were seen comes again in this epoch"
            )
        self.passes = EpochIterator(begin=place, length=self.order.count, trained=self.passes.trained)


def check(saved: dict[str, Any], facts: dict[str, int]) -> None:
    """Raises ValueError, saying what differs, where a checkpoint's place is not one in this order."""
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


def batches_trained(data: Any) -> int | None:
    """How many batches of its present epoch the trainer of a data module has taken; None without a trainer."""
    return None if data.trainer is None else data.trainer.fit_loop.epoch_loop.batch_progress.current.ready
