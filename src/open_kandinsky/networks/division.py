"""How a large network is divided: which of its blocks are recomputed, compiled and sharded one by one."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


@runtime_checkable
class Divided(Protocol):
    """A network made of units: blocks whose `forward` is called, and of which one runs at a time."""

    entries: tuple[str, ...]  # the methods beside `forward` that run parts of the network

    def units(self) -> Sequence[nn.Module]: ...

    def apart(self) -> Sequence[nn.Module]:
        """Modules inside of units that run, together, when their units do not."""
        ...


def whole(x: Tensor) -> Tensor:
    """A sharded tensor in one piece, in every process, which all call this; another as it is."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as they are; sharded ones in one piece, on the CPU of the first process, and left out in the others.

    All processes call this. One tensor at a time, so that a GPU needs no room for all.
    """
    together: dict[str, Tensor] = {}
    for name, x in tensors.items():
        if not isinstance(x, DTensor):
            together[name] = x
            continue
        piece = whole(x)
        if x.device_mesh.get_rank() == 0:
            together[name] = piece.cpu()
    return together


def own(x: Tensor) -> Tensor:
    """The part of a sharded tensor that this process holds, in the same memory; another as it is."""
    return x.to_local() if isinstance(x, DTensor) else x


def divided(x: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process holds in one piece, on `like`'s device, laid out and sharded as it. Nothing is sent.

    One that is sharded already stays so.
    """
    x = x.to(like.device)
    if isinstance(x, DTensor):
        return x
    if not isinstance(like, DTensor):
        return x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x)
    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def assign(parameter: Tensor, value: Tensor) -> None:
    """Write a value that every process holds in one piece into a parameter that may be sharded."""
    own(parameter).copy_(own(divided(value, parameter)))
