"""A batch in the making, row by row."""

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from open_kandinsky.data.memory import Batch


class Building:
    """Room for `size` rows. Tensors are stacked, everything else makes a list.

    A row is copied to its place as soon as it is made, and its own memory is at once free for the next one: rows that
    wait to be stacked together cost a page fault for every 4 kB of each.
    """

    def __init__(self, size: int) -> None:
        self.size, self.count = size, 0
        self.columns: dict[str, Any] = {}

    def add(self, row: Batch) -> None:
        """The next row."""
        for name, value in row.items():
            if isinstance(value, Tensor):
                if name not in self.columns:
                    self.columns[name] = room(self.size, value)
                self.columns[name][self.count] = value
            else:
                self.columns.setdefault(name, []).append(value)
        self.count += 1

    def batch(self) -> Batch:
        """The rows so far."""
        return {name: column[: self.count] for name, column in self.columns.items()}


def room(size: int, like: Tensor) -> Tensor:
    """For `size` such tensors; in a worker in shared memory, as torch's own collate takes it, lest it be copied."""
    shape = (size, *like.shape)
    if get_worker_info() is None:
        return like.new_empty(shape)
    shared = torch.UntypedStorage._new_shared(prod(shape) * like.element_size(), device="cpu")
    return like.new_empty(0).set_(shared, 0, shape)  # pyright: ignore[reportCallIssue]
