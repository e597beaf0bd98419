"""What a stage does together with the other processes of its training: draw, take a mean, see all their rows.

Plain collectives, which a GPU does not wait for: Lightning's `reduce` and `sync_dist` begin with a barrier each.
"""

import torch
from jaxtyping import Shaped
from lightning import LightningModule
from torch import Tensor
from torch import distributed as dist

from open_kandinsky.diffusion.draws import ALONE, Draws


def draws(stage: LightningModule) -> Draws:
    """For this process's rows of a batch; alone where the stage is not in a trainer."""
    if stage._trainer is None:
        return ALONE
    return Draws(stage.global_rank, stage.trainer.world_size)


def processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def total(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The sum over all processes."""
    summed = value.detach().clone()
    if processes() > 1:
        dist.all_reduce(summed)
    return summed


def mean(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Over all processes; that of the whole batch where each has as much of it."""
    return total(value) / processes()


@torch.no_grad()
def gathered(rows: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "all ..."]:
    """Those of all processes, in their order in the batch of all. As many in each; without gradients."""
    if processes() == 1:
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(processes())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


@torch.no_grad()
def first(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """What the first process has."""
    heard = value.detach().clone()
    if processes() > 1:
        dist.broadcast(heard, 0)
    return heard
