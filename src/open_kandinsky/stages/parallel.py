"""How a stage's networks run: recomputed, compiled and sharded, block by block, by torch's own means.

Less memory for more work: what the backward pass needs of a block is computed again there, and not kept.
"""

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from open_kandinsky.core.errors import UserError

# Blocks send and hold weights in bf16, as autocast would have cast them; outside of blocks (embeddings, positions) they
# stay float32, and so do gradients and the weights that the optimiser moves. Inputs are autocast's to cast.
IN_BLOCKS = {
    "bf16-mixed": MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False),
    "32-true": MixedPrecisionPolicy(cast_forward_inputs=False),
}
OUTSIDE = MixedPrecisionPolicy(cast_forward_inputs=False)
SHAPES = 8  # of which a block may be given as many, as in aspect-ratio buckets, before it is no longer compiled


@runtime_checkable
class Shardable(Protocol):
    """A network made of units: blocks whose `forward` is called, and of which one runs at a time."""

    entries: tuple[str, ...]  # the methods beside `forward` that run parts of the network

    def units(self) -> Sequence[nn.Module]: ...

    def extra_modules(self) -> Sequence[nn.Module]:
        """Modules inside of units that run, together, when their units do not."""
        ...


@runtime_checkable
class Way(Protocol):
    """One change to how a unit runs; neither its parameters nor their names change."""

    def __call__(self, unit: nn.Module, count: int) -> None: ...


class Compiled:
    """torch.compile, a unit at a time: blocks of one shape share what was compiled.

    To torch, blocks of several levels look like one whose map changes its sides from call to call. With `dynamic` None
    it compiles from the third on for any sides, as buckets of many shapes want it; with False for each shape anew,
    which gives faster kernels.
    """

    def __init__(self, *, backend: str, dynamic: bool | None) -> None:
        self.backend, self.dynamic = backend, dynamic

    def __call__(self, unit: nn.Module, count: int) -> None:
        # All units of a class share one limit, and past it they would run uncompiled without a word.
        limit: int = torch._dynamo.config.cache_size_limit
        torch._dynamo.config.cache_size_limit = max(limit, SHAPES * count)
        unit.forward = torch.compile(unit.forward, backend=self.backend, dynamic=self.dynamic)


class Engine:
    """What is done to each of a stage's networks once, before its first step; `ways` in turn, then sharding.

    A network that is not `Shardable` is one unit, which is sharded alone. On a GPU what is not sharded, which FSDP2
    takes as it is only, is in channels_last; a CPU trains faster without (benchmarks/README.md).
    """

    def __init__(self, *, ways: list[Way]) -> None:
        self.ways = ways
        self.done: list[nn.Module] = []

    def apply(self, stage: LightningModule, *networks: nn.Module) -> None:
        """For `configure_model`, which Lightning calls before each fit and each validation."""
        for network in networks:
            if any(network is each for each in self.done):
                continue
            self.done.append(network)
            units = list(network.units()) if isinstance(network, Shardable) else []
            for way in self.ways:
                for unit in units:
                    way(unit, len(units))
            if stage.device_mesh is not None:
                shard(network, stage.device_mesh["data_parallel"], str(stage.trainer.precision))
            elif stage.trainer.strategy.root_device.type == "cuda":
                network.to(memory_format=torch.channels_last)  # what convolutions are given follows their weights


def shard(network: nn.Module, mesh: DeviceMesh, precision: str) -> None:
    """FSDP2 over all processes, unit by unit and then the rest. ValueError for a precision that it has no rule for.

    All is resharded after its forward pass, what is outside of units too: whoever reads the parameters between two
    steps (averages, clipping, checkpoints) finds each process's shard.
    """
    if precision not in IN_BLOCKS:
        raise UserError(f"trainer.precision={precision} with strategy=fsdp: choose one of {', '.join(IN_BLOCKS)}")
    split = partial(fully_shard, mesh=mesh, reshard_after_forward=True)
    if isinstance(network, Shardable):
        if extra := list(network.extra_modules()):
            split(extra, mp_policy=IN_BLOCKS[precision])
        for unit in network.units():
            split(unit, mp_policy=IN_BLOCKS[precision])
    split(network, mp_policy=OUTSIDE)
    for entry in network.entries if isinstance(network, Shardable) else ():
        register_fsdp_forward_method(network, entry)


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


class MemoryBudget:
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
