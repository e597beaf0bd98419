"""Numbers that must be finite: looked at when they are made, or one step later where looking would stop a GPU."""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from open_kandinsky.core.distributed import local_shard
from open_kandinsky.core.errors import NumericalError


class Seen(NamedTuple):
    """Where a number comes from."""

    name: str
    step: int
    keys: list[str]  # of the batch's samples


@runtime_checkable
class Check(Protocol):
    """`see` takes a number; after `settle` all have been looked at. NumericalError at one that is none."""

    def see(self, value: Float[Tensor, ""], seen: Seen) -> None: ...

    def settle(self) -> None: ...


class AtOnce:
    """Before anything is done with it: on the CPU, where looking costs nothing."""

    def see(self, value: Float[Tensor, ""], seen: Seen) -> None:
        refuse(float(value.detach()), seen, "no weight was changed by it, and")

    def settle(self) -> None:
        pass


class Later:
    """When the next step's is given, by which time a GPU has long computed it; the host waits for no kernel of its own.

    A weight may have moved by it. So whoever writes or uses weights must `settle` first.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[Tensor, torch.cuda.Event | None, Seen]] = deque()

    def see(self, value: Float[Tensor, ""], seen: Seen) -> None:
        while self.waiting and self.waiting[0][2].step < seen.step:
            self._look()
        self.waiting.append((*fetched(value.detach()), seen))

    def settle(self) -> None:
        while self.waiting:
            self._look()

    def _look(self) -> None:
        value, done, seen = self.waiting.popleft()
        if done is not None:
            done.synchronize()
        refuse(float(value), seen, "no checkpoint was written since, and")


def fetched(value: Float[Tensor, ""]) -> tuple[Float[Tensor, ""], torch.cuda.Event | None]:
    """A copy on its way to the host, and what tells that it has arrived."""
    if not value.is_cuda:
        return value.clone(), None
    there = torch.empty_like(value, device="cpu", pin_memory=True)
    there.copy_(value, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return there, done


def refuse(value: float, seen: Seen, meanwhile: str) -> None:
    if not torch.isfinite(torch.tensor(value)):
        keys = ", ".join(seen.keys[:8]) + (", ..." if len(seen.keys) > 8 else "")
        raise NumericalError(
            f"{seen.name} is {value} at step {seen.step}, in the batch of {len(seen.keys)} samples {keys}; "
            f"{meanwhile} the last checkpoint is as it was. Look at these samples, or lower stage.optimizer.lr, or set "
            "trainer.gradient_clip_val"
        )


def first_unfinite(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of a weight that is not finite; of a sharded one each process looks at its own part."""
    parts = {name: local_shard(weight) for name, weight in weights}
    if not parts or bool(torch.stack([part.isfinite().all() for part in parts.values()]).all()):
        return None
    return next(name for name, part in parts.items() if not bool(part.isfinite().all()))
