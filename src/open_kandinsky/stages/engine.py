"""How a stage's networks run: recomputed, compiled and sharded, block by block, by torch's own means."""

from collections.abc import Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from lightning import LightningModule
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

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

    def apart(self) -> Sequence[nn.Module]:
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
        if apart := list(network.apart()):
            split(apart, mp_policy=IN_BLOCKS[precision])
        for unit in network.units():
            split(unit, mp_policy=IN_BLOCKS[precision])
    split(network, mp_policy=OUTSIDE)
    for entry in network.entries if isinstance(network, Shardable) else ():
        register_fsdp_forward_method(network, entry)
