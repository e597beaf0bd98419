"""Collectives over the processes of a training, and tensors that FSDP has sharded.

Lightning's `reduce` and `sync_dist` begin with a barrier each, for which a GPU waits; these do not.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank, and the number of processes; (0, 1) where torch.distributed is not initialised."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def world_size() -> int:
    return rank_and_world_size()[1]


@torch.no_grad()
def sum_over_processes(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The sum of every process's value, without gradients."""
    summed = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(summed)
    return summed


def mean_over_processes(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The mean of every process's value: of means over rows the mean of all rows, if all have equally many."""
    return sum_over_processes(value) / world_size()


@torch.no_grad()
def gather_rows(rows: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "all ..."]:
    """The rows of all processes in the order of ranks, without gradients. Every process has equally many."""
    if world_size() == 1:
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


@torch.no_grad()
def broadcast_from_first(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Rank 0's value."""
    received = value.detach().clone()
    if world_size() > 1:
        dist.broadcast(received, 0)
    return received


def gather_objects(value: Any) -> list[Any]:
    """The picklable value of every process, in the order of ranks."""
    values: list[Any] = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def unsharded(x: Tensor) -> Tensor:
    """A sharded tensor in one piece, in every process, all of which call this; a plain tensor as it is."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def gather_unsharded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain tensors as they are; sharded ones in one piece, on the CPU of rank 0, and left out in other processes.

    All processes call this. One tensor at a time, so that a GPU needs no room for all.
    """
    whole: dict[str, Tensor] = {}
    for name, x in tensors.items():
        full = unsharded(x)
        if not isinstance(x, DTensor):
            whole[name] = x
        elif x.device_mesh.get_rank() == 0:
            whole[name] = full.cpu()
    return whole


def local_shard(x: Tensor) -> Tensor:
    """The part of a sharded tensor that this process holds, in the same memory; a plain tensor as it is."""
    return x.to_local() if isinstance(x, DTensor) else x


def shard_like(x: Tensor, like: Tensor) -> Tensor:
    """`x`, which every process holds in one piece, on the device of `like`, with its strides and shards.

    Nothing is sent. An `x` that is sharded already stays so.
    """
    x = x.to(like.device)
    if isinstance(x, DTensor):
        return x
    if not isinstance(like, DTensor):
        return x if x.stride() == like.stride() else torch.empty_like(like, dtype=x.dtype).copy_(x)
    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)
