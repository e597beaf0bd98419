"""A batch in the making, row by row."""

from typing import Any

from torch import Tensor

from open_kandinsky.data.memory import Batch
from open_kandinsky.data.streaming.rooms import Rooms, given


class Building:
    """Room for `size` rows. Tensors are stacked, everything else makes a list.

    A row is copied to its place as soon as it is made, and its own memory is at once free for the next one: rows that
    wait to be stacked together cost a page fault for every 4 kB of each.
    """

    def __init__(self, size: int, rooms: Rooms) -> None:
        self.size, self.rooms, self.count = size, rooms, 0
        self.columns: dict[str, Any] = {}

    def add(self, row: Batch) -> None:
        """The next row."""
        for name, value in row.items():
            if isinstance(value, Tensor):
                if name not in self.columns:
                    self.columns[name] = self.rooms.tensor(name, [self.size, *value.shape], value.dtype)
                self.columns[name][self.count] = value
            else:
                self.columns.setdefault(name, []).append(value)
        self.count += 1

    def batch(self) -> Batch:
        """The rows so far."""
        rows = {name: column[: self.count] for name, column in self.columns.items()}
        return {name: given(column) if isinstance(column, Tensor) else column for name, column in rows.items()}
