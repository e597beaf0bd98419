"""Compilation, activation recomputation and sharding (FSDP2) of a stage's networks, block by block.

Recomputation (gradient checkpointing) runs a block's forward pass again in the backward pass, in place of keeping its
activations. Here is also the cost model by which `MemoryBudget` chooses blocks for it.
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

# FSDP2 gathers a block's weights in bf16, to which autocast would cast them anyway. Weights outside of blocks
# (embeddings, positions), gradients and the shards that the optimiser steps are float32. Autocast casts the inputs.
IN_BLOCKS = {
    "bf16-mixed": MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False),
    "32-true": MixedPrecisionPolicy(cast_forward_inputs=False),
}
OUTSIDE = MixedPrecisionPolicy(cast_forward_inputs=False)
SHAPES = 8  # for which a block is compiled at most, as aspect-ratio buckets need; past them it runs uncompiled


@runtime_checkable
class Shardable(Protocol):
    """A network made of units: blocks that run one at a time, each by its `forward`."""

    entries: tuple[str, ...]  # the methods beside `forward` that use parameters

    def units(self) -> Sequence[nn.Module]: ...

    def extra_modules(self) -> Sequence[nn.Module]:
        """Modules inside of units that run, together, when their units do not."""
        ...


@runtime_checkable
class Way(Protocol):
    """A change to how a unit runs, of `count` in the network; its parameters and their names stay."""

    def __call__(self, unit: nn.Module, count: int) -> None: ...


class Compiled:
    """torch.compile, a unit at a time: blocks of one class and shape share compiled code.

    To torch, blocks of several resolutions look like one block whose input changes its shape from call to call. With
    `dynamic` None it compiles for any size once a size has changed, which suits buckets of many shapes; with False for
    each shape anew, which gives faster kernels.
    """

    def __init__(self, *, backend: str, dynamic: bool | None) -> None:
        self.backend, self.dynamic = backend, dynamic

    def __call__(self, unit: nn.Module, count: int) -> None:
        # All units of a class share one limit, past which they would silently run uncompiled.
        limit: int = torch._dynamo.config.cache_size_limit
        torch._dynamo.config.cache_size_limit = max(limit, SHAPES * count)
        unit.forward = torch.compile(unit.forward, backend=self.backend, dynamic=self.dynamic)


class Engine:
    """Applies `ways` in turn, then sharding, to each of a stage's networks once, before the first step.

    A network that is not `Shardable` gets no `ways`, and is sharded as a whole. On a GPU a network that is not sharded
    is in channels_last, which FSDP2 does not allow; a CPU trains faster without (benchmarks/README.md).
    """

    def __init__(self, *, ways: Mapping[str, Way]) -> None:
        self.ways = list(ways.values())
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
                network.to(memory_format=torch.channels_last)  # activations follow the weights


def shard(network: nn.Module, mesh: DeviceMesh, precision: str) -> None:
    """FSDP2 over all processes, unit by unit and then the rest. UserError for a precision that it has no rule for.

    All of it is resharded after its forward pass, modules outside of units too: between two steps averages, clipping
    and checkpoints read each process's own shard.
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
    """The cost of one unit in a training step."""

    inputs: int  # bytes that are kept whether it is recomputed or not
    inside: int  # bytes of activations that autograd keeps besides
    flops: int  # of recomputing it


def recompute(unit: nn.Module, count: int) -> None:
    """Keep a unit's inputs alone for the backward pass, and run it again there: less memory, a third more work."""
    unit.forward = partial(checkpoint, unit.forward, use_reentrant=False, preserve_rng_state=False)


class MemoryBudget:
    """Recomputes just enough units to keep activations of all units under `gigabytes` (1e9 bytes) in a process.

    The first batch measures each unit, with all of them recomputed. Then units keep their activations while these fit,
    those first that save the most FLOPs per byte. Later batches are taken to be no larger. Losses do not depend on it.
    """

    def __init__(self, *, gigabytes: int | float) -> None:
        self.bytes = gigabytes * GB
        self.costs: dict[nn.Module, Cost] = {}
        self.kept: set[nn.Module] | None = None

    def __call__(self, unit: nn.Module, count: int) -> None:
        plain = unit.forward
        recompute(unit, count)
        recomputed = unit.forward

        def forward(*inputs: Any, **named: Any) -> Any:
            if not torch.is_grad_enabled() or (self.kept is not None and unit in self.kept):
                return plain(*inputs, **named)
            outputs = recomputed(*inputs, **named)
            if self.kept is None:
                self.measure(unit, inputs, named, outputs)
            return outputs

        unit.forward = forward

    def measure(self, unit: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], outputs: Any) -> None:
        """Add up the runs of a unit in the first forward pass, which has ended when the first gradient comes."""
        pairs = zip(self.costs.get(unit, (0, 0, 0)), measure_cost(unit, *inputs, **named), strict=True)
        self.costs[unit] = Cost(*map(sum, pairs))
        for x in tree_leaves(outputs):
            if isinstance(x, Tensor) and x.requires_grad:
                x.register_hook(self.decide)

    def decide(self, gradient: Tensor) -> None:
        if self.kept is not None:
            return
        self.kept = kept = affordable(self.costs, self.bytes)
        inputs = sum(cost.inputs for cost in self.costs.values())
        needed = inputs + sum(self.costs[unit].inside for unit in kept)
        level = logging.WARNING if inputs > self.bytes else logging.INFO
        message = "%d of %d blocks are recomputed: they keep %.2f GB, of a budget of %.2f"
        count = len(self.costs)
        logger.log(level, message, count - len(kept), count, needed / GB, self.bytes / GB)


def affordable(costs: Mapping[Unit, Cost], budget: int | float) -> set[Unit]:
    """Units whose activations fit into `budget` bytes beside all inputs: the most FLOPs to recompute per byte first."""
    left = budget - sum(cost.inputs for cost in costs.values())
    kept = set()
    for unit in sorted(costs, key=lambda unit: -costs[unit].flops / max(costs[unit].inside, 1)):
        if costs[unit].inside <= left:
            kept.add(unit)
            left -= costs[unit].inside
    return kept


def measure_cost(unit: nn.Module, *inputs: Any, **named: Any) -> Cost:
    """Run a unit uncompiled, for its cost alone; compiled, it keeps no more."""
    input_bytes = storages(tree_leaves((inputs, named)))
    with FlopCounterMode(display=False) as flops, saved_for_backward() as sizes:
        type(unit).forward(unit, *inputs, **named)
    others = input_bytes.keys() | storages(unit.parameters()).keys()
    inside = sum(size for name, size in sizes.items() if name not in others)
    return Cost(sum(input_bytes.values()), inside, flops.get_total_flops())


def storages(values: Any) -> dict[int, int]:
    """Bytes of each storage of the tensors among `values`, by the storage's address."""
    distinct = [value.untyped_storage() for value in values if isinstance(value, Tensor)]
    return {storage._cdata: storage.nbytes() for storage in distinct}


@contextmanager
def saved_for_backward() -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd saves for the backward pass while the block runs, by its address."""
    sizes: dict[int, int] = {}
    held = []  # so that no two storages have one address

    def pack(x: Tensor) -> Tensor:
        held.append(x.untyped_storage())
        sizes.update(storages([x]))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield sizes
