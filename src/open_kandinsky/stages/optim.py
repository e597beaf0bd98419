"""Training a part of a network: a decoder for a domain of one's own, say, while latents stay as they are.

Optimisers and learning-rate schedules, as the stages take them from the configuration.
"""

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
    """ValueError for what is no part of the network."""
    parts = dict(network.named_children())
    if strange := set(trained) - set(parts):
        raise UserError(f"stage.trained: {sorted(strange)[0]!r} is no part of the network: {', '.join(parts)}")
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
    """An optimiser of those that are trained; weight decay is for matrices alone, as in open_clip.

    Norms, biases, temperatures and other vectors have a group of their own without it, where there is any.
    """
    trained = [p for p in parameters if p.requires_grad]
    optimizer = make(trained)
    if any(group.get("weight_decay") for group in optimizer.param_groups) and any(p.ndim < 2 for p in trained):
        (group,) = optimizer.param_groups
        group["params"] = [p for p in trained if p.ndim >= 2]
        optimizer.add_param_group({"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0})
    return trainable(optimizer)


def trainable(optimizer: Optimizer) -> Optimizer:
    """The same, whose gradients may be clipped in mixed precision, and which resumes from weights of another layout.

    Lightning refuses to clip for a fused optimiser, which could unscale gradients itself. Here a scaler does that,
    where there is one: in bf16 there is none.
    """
    optimizer._step_supports_amp_scaling = False  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.register_load_state_dict_pre_hook(refuse_other_groups)
    optimizer.register_load_state_dict_post_hook(lay_out)
    return optimizer


def refuse_other_groups(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """ValueError for the state of an optimiser whose weight decay moved vectors too, as versions before 0.2 had it."""
    before, now = len(state["param_groups"]), len(optimizer.param_groups)
    if before != now:
        raise UserError(
            f"the checkpoint's optimiser has {before} group(s) of parameters, and this one {now} (weight decay is for "
            "matrices alone since version 0.2): begin anew from its weights, run_dir=NEW init=RUN"
        )


def lay_out(optimizer: Optimizer) -> None:
    """Moments as their weights are: torch's fused optimisers read both by address, and do not ask for strides."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = shard_like(value, weight)


def stepwise(
    parameters: Iterable[nn.Parameter], optimizer: MakeOptimizer, lr_schedule: MakeSchedule
) -> OptimizerLRScheduler:
    """For `configure_optimizers`: the rate moves every step, not every epoch."""
    made = build_optimizer(parameters, optimizer)
    return {"optimizer": made, "lr_scheduler": {"scheduler": lr_schedule(made), "interval": "step", "name": "train/lr"}}
