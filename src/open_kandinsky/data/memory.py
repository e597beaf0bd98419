"""Sets held in memory: stacked tensors, a loader that draws batches from them, and the loader's place in a run."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from open_kandinsky.data.order import Order

Batch = dict[str, Any]


class Table(NamedTuple):
    """A set in memory. `columns`: equal first dimensions; half precision stays half until a batch is made."""

    columns: dict[str, Tensor]
    caption: list[str]
    key: list[str]

    def batch(self, rows: list[int]) -> Batch:
        """One batch, as in data/batch.py: one index_select a column, half precision cast to float32."""
        index = torch.tensor(rows)
        batch: Batch = {name: widened(column.index_select(0, index)) for name, column in self.columns.items()}
        return batch | {"caption": [self.caption[row] for row in rows], "key": [self.key[row] for row in rows]}


def widened(values: Tensor) -> Tensor:
    """float16 and bfloat16 to float32; other types as they are."""
    return values.float() if values.is_floating_point() else values


class Position:
    """Where a loader is: its epoch, counted in passes, and after a resume how many of its batches to skip.

    `trained` says how many batches of the present epoch the trainer has taken. `ahead`: how many it draws before it
    takes one; a pass from which no more was drawn has not begun, and the next pass is the same epoch.
    """

    def __init__(self, *, trained: Callable[[], int], ahead: int) -> None:
        self.trained, self.ahead = trained, ahead
        self.epoch, self.skip, self.drawn = 0, 0, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "trained": self.trained()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.epoch, self.skip, self.drawn = state_dict["epoch"], state_dict["trained"], 0

    def walk(self, batches: Callable[[int], Iterator[Batch]]) -> Iterator[Batch]:
        """One pass: the rest of an interrupted epoch, or the next one."""
        if self.drawn > self.ahead:
            self.epoch, self.skip = self.epoch + 1, 0
        self.drawn = 0
        for batch in islice(batches(self.epoch), self.skip, None):
            self.drawn += 1
            yield batch
        was_over = self.skip > 0 and self.drawn == 0
        self.drawn = self.ahead + 1
        if was_over:  # the interruption came at the epoch's very end
            yield from self.walk(batches)


class MemoryLoader:
    """Batches of a table in an order, another one each pass.

    Not a torch DataLoader: one indexed copy is faster than workers, and Lightning would put its own sampler into it.
    """

    def __init__(self, *, table: Table, order: Order, trained: Callable[[], int]) -> None:
        self.table, self.order, self.position = table, order, Position(trained=trained, ahead=0)
        self.state_dict, self.load_state_dict = self.position.state_dict, self.position.load_state_dict

    def __len__(self) -> int:
        return self.order.count

    def __iter__(self) -> Iterator[Batch]:
        return self.position.walk(lambda epoch: map(self.table.batch, self.order.batches(epoch)))


def batches_trained(data: Any) -> int:
    """How many batches of its present epoch the trainer of a data module has taken."""
    return data.trainer.fit_loop.epoch_loop.batch_progress.current.ready
