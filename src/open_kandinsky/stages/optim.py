"""Optimisers and learning-rate schedules, as stages take them from the configuration; freezing parts of a network."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from open_kandinsky.core.distributed import shard_like
from open_kandinsky.core.errors import UserError


def freeze_all_but(trained: Sequence[str], network: nn.Module) -> None:
    """Leave gradients to the children named in `trained`, say a decoder. UserError names an unknown one."""
    parts = dict(network.named_children())
    if unknown := set(trained) - set(parts):
        raise UserError(f"stage.trained: {sorted(unknown)[0]!r} is no part of the network: {', '.join(parts)}")
    for name, part in parts.items():
        part.requires_grad_(name in trained)


MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeSchedule = Callable[[Optimizer], LRScheduler]


def warmup_cosine(optimizer: Optimizer, *, warmup: int, steps: int, floor: float) -> LRScheduler:
    """Rise linearly for `warmup` steps, then fall by half a cosine to `floor` times the rate at `steps`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min((step - warmup) / max(steps - warmup, 1), 1)
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)


def warmup_constant(optimizer: Optimizer, *, warmup: int) -> LRScheduler:
    """Rise linearly for `warmup` steps, then stay: Kandinsky's trainers never decay."""
    return LambdaLR(optimizer, lambda step: min((step + 1) / max(warmup, 1), 1))


def build_optimizer(parameters: Iterable[nn.Parameter], make: MakeOptimizer) -> Optimizer:
    """An optimiser of the parameters that require gradients; weight decay is for matrices alone, as in open_clip.

    Norms, biases, temperatures and other vectors are in a parameter group without it.
    """
    trained = [p for p in parameters if p.requires_grad]
    optimizer = make(trained)
    if any(group.get("weight_decay") for group in optimizer.param_groups) and any(p.ndim < 2 for p in trained):
        (group,) = optimizer.param_groups
        group["params"] = [p for p in trained if p.ndim >= 2]
        optimizer.add_param_group({"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0})
    return prepare(optimizer)


def prepare(optimizer: Optimizer) -> Optimizer:
    """Let a fused optimiser's gradients be clipped in mixed precision, and its state be loaded for any weight layout.

    Lightning refuses to clip for a fused optimiser, because it may unscale gradients itself. Here the scaler unscales
    (16-mixed), or nothing is scaled (bf16-mixed).
    """
    optimizer._step_supports_amp_scaling = False  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.register_load_state_dict_pre_hook(refuse_other_groups)
    optimizer.register_load_state_dict_post_hook(lay_out)
    return optimizer


def refuse_other_groups(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """UserError for a state with another number of parameter groups: before version 0.2 vectors decayed too."""
    before, now = len(state["param_groups"]), len(optimizer.param_groups)
    if before != now:
        raise UserError(
            f"the checkpoint's optimiser has {before} group(s) of parameters, and this one {now} (weight decay is for "
            "matrices alone since version 0.2): begin anew from its weights, run_dir=NEW init=RUN"
        )


def lay_out(optimizer: Optimizer) -> None:
    """Give moments the strides of their weights: torch's fused optimisers read both by address alone."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = shard_like(value, weight)


def stepwise(
    parameters: Iterable[nn.Parameter], optimizer: MakeOptimizer, lr_schedule: MakeSchedule
) -> OptimizerLRScheduler:
    """What `configure_optimizers` returns for one optimiser whose rate is set every step, not every epoch."""
    built = build_optimizer(parameters, optimizer)
    return {
        "optimizer": built,
        "lr_scheduler": {"scheduler": lr_schedule(built), "interval": "step", "name": "train/lr"},
    }
