"""Memory in which batches are built one after the other: it is used again as soon as nobody holds what lay there.

Fresh memory costs a page fault for every 4 kB of a batch; fresh shared memory twice as much, and its end as much again.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from math import prod
from multiprocessing.util import Finalize

import torch
from torch import Tensor, UntypedStorage
from torch.utils.data import get_worker_info

KNOWN = 8  # rooms a field that are used again; what is built beyond them goes with its batch
FREE, TAKEN = 0, 1  # the last byte of a room


class Rooms:
    """The memory of one stream. In a worker it is shared, lest a batch be copied on its way out."""

    def __init__(self) -> None:
        self.known: defaultdict[str, deque[UntypedStorage]] = defaultdict(lambda: deque(maxlen=KNOWN))

    def tensor(self, field: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Uninitialised, in a room of its own until the one who takes it (`Given`) holds it no longer."""
        return seen(self.room(field, prod(shape) * dtype.itemsize), dtype, shape)

    def room(self, field: str, nbytes: int) -> UntypedStorage:
        """A free one, at most twice as large as needed, or else a new one."""
        fit = [room for room in self.known[field] if nbytes < room.nbytes() <= 2 * nbytes + 1]
        free = [room for room in fit if room[-1] == FREE]
        room = min(free, key=UntypedStorage.nbytes, default=None)
        if room is None:
            room = new(nbytes + 1)
            self.known[field].append(room)
        mark(room, TAKEN)
        return room


class Given:
    """A tensor of `Rooms` on its way to the process that takes it: there it is a tensor, which frees its room."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> tuple[object, ...]:
        return taken, (self.tensor,)


def given(tensor: Tensor) -> Tensor | Given:
    """What leaves a stream: without workers it is taken at once."""
    return taken(tensor) if get_worker_info() is None else Given(tensor)


def taken(tensor: Tensor) -> Tensor:
    """The same numbers in the same place. The room is free when neither it nor any view of it is held.

    Python may forget a storage that C++ still has, but an array lives as long as any tensor that was made from it.
    """
    room = tensor.untyped_storage()
    array = seen(room, torch.uint8, [room.nbytes()]).numpy()
    Finalize(array, mark, (room, FREE))  # not in a fork of this process
    return torch.from_numpy(array)[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)


def mark(room: UntypedStorage, state: int) -> None:
    room[room.nbytes() - 1] = state


def new(nbytes: int) -> UntypedStorage:
    if get_worker_info() is None:
        return UntypedStorage(nbytes)
    return UntypedStorage._new_shared(nbytes, device="cpu")


def seen(room: UntypedStorage, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """The beginning of a room as a tensor."""
    return torch.empty(0, dtype=dtype).set_(room, 0, tuple(shape))  # pyright: ignore[reportCallIssue]
