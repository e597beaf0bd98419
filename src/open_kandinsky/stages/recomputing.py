"""Less memory for more work: what the backward pass needs of a block is computed again there, and not kept."""

import logging
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

logger = logging.getLogger(__name__)
GB = 1e9
Unit = TypeVar("Unit", bound=Hashable)


class Cost(NamedTuple):
    """Of one unit and one batch."""

    inputs: int  # bytes that stay whether it is run again or not
    inside: int  # bytes that autograd keeps besides
    flops: int  # of running it again


NOTHING = Cost(0, 0, 0)


def plus(a: Cost, b: Cost) -> Cost:
    return Cost(*(x + y for x, y in zip(a, b, strict=True)))


def recompute(unit: nn.Module, count: int) -> None:
    """Keep a unit's inputs alone for the backward pass, and run it again there: less memory, a third more work."""
    unit.forward = again(unit.forward)


def again(forward: Any) -> Any:
    return partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)


class Budget:
    """Recompute no more units than it takes for all of them to keep at most `gigabytes` (1e9 bytes) in a process.

    Each is counted at the first batch, at which all are recomputed; then those are kept that fit, of which a byte saves
    the most FLOPs first. Later batches are taken to be no larger. Losses are the same whatever is kept.
    """

    def __init__(self, *, gigabytes: int | float) -> None:
        self.bytes = gigabytes * GB
        self.costs: dict[nn.Module, Cost] = {}
        self.kept: set[nn.Module] | None = None

    def __call__(self, unit: nn.Module, count: int) -> None:
        plain, recomputed = unit.forward, again(unit.forward)

        def forward(*inputs: Any, **named: Any) -> Any:
            if not torch.is_grad_enabled() or (self.kept is not None and unit in self.kept):
                return plain(*inputs, **named)
            made = recomputed(*inputs, **named)
            if self.kept is None:
                self.count(unit, inputs, named, made)
            return made

        unit.forward = forward

    def count(self, unit: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], made: Any) -> None:
        """A unit may run more than once in a step, which is over when its gradients come."""
        self.costs[unit] = plus(self.costs.get(unit, NOTHING), counted(unit, *inputs, **named))
        for x in tree_leaves(made):
            if isinstance(x, Tensor) and x.requires_grad:
                x.register_hook(self.decide)

    def decide(self, gradient: Tensor) -> None:
        if self.kept is not None:
            return
        self.kept = kept = affordable(self.costs, self.bytes)
        inputs = sum(cost.inputs for cost in self.costs.values())
        needed = inputs + sum(self.costs[unit].inside for unit in kept)
        told = f"{len(self.costs) - len(kept)} of {len(self.costs)} blocks are recomputed"
        level = logging.WARNING if inputs > self.bytes else logging.INFO
        logger.log(level, "%s: they keep %.2f GB, of a budget of %.2f", told, needed / GB, self.bytes / GB)


def affordable(costs: Mapping[Unit, Cost], budget: int | float) -> set[Unit]:
    """Units whose insides fit into `budget` bytes beside all inputs: those dearest to run again, for a byte, first."""
    left = budget - sum(cost.inputs for cost in costs.values())
    kept = set()
    for unit in sorted(costs, key=lambda unit: -costs[unit].flops / max(costs[unit].inside, 1)):
        if costs[unit].inside <= left:
            kept.add(unit)
            left -= costs[unit].inside
    return kept


def counted(unit: nn.Module, *inputs: Any, **named: Any) -> Cost:
    """From a run whose outcome is dropped, uncompiled: what is compiled keeps no more."""
    given = storages(tree_leaves((inputs, named)))
    with FlopCounterMode(display=False) as flops, saved() as sizes:
        type(unit).forward(unit, *inputs, **named)
    others = given.keys() | storages(unit.parameters()).keys()
    inside = sum(size for name, size in sizes.items() if name not in others)
    return Cost(sum(given.values()), inside, flops.get_total_flops())


def storages(values: Any) -> dict[int, int]:
    """Bytes of the storage of each tensor among them."""
    found = [value.untyped_storage() for value in values if isinstance(value, Tensor)]
    return {storage._cdata: storage.nbytes() for storage in found}


@contextmanager
def saved() -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd keeps for the backward pass of what is run meanwhile."""
    sizes: dict[int, int] = {}
    held = []  # so that no two storages have one address

    def pack(x: Tensor) -> Tensor:
        held.append(x.untyped_storage())
        sizes.update(storages([x]))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield sizes
