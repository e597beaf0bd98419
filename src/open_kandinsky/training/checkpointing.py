"""Checkpoints on disk, of training that is not sharded.

The strategy of sharded training, and its checkpoints: folders that are whole, or what they were before.
"""

import errno
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from open_kandinsky.core import files
from open_kandinsky.core.distributed import gather_objects
from open_kandinsky.core.errors import UserError
from open_kandinsky.stages.optim import refuse_other_groups
from open_kandinsky.weights import checkpoint as checkpoint_folder
from open_kandinsky.weights import store
from open_kandinsky.weights.checkpoint import CHECKSUMS, META, aside, joined, older, standing, tensor_files


class WholeCheckpoints(TorchCheckpointIO):
    """Whole: the new one or the one before.

    Lightning writes by way of the system's temporary folder, which may be small, and a copy from there may be cut.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """OSError names the file. A folder of that name, from sharded training, makes room once the file is whole."""
        path = Path(path)
        to = path.with_name(f".{path.name}.part") if path.is_dir() else path
        with files.replacing(to) as part, open(part, "wb") as file:
            torch.save(checkpoint, file)
        if to != path:
            settle(to, path)

    def load_checkpoint(self, path: str | Path, *options: Any, **more: Any) -> dict[str, Any]:
        """ValueError where the file is damaged, or is no checkpoint. A folder of sharded training is joined."""
        path = standing(Path(path))
        if path.is_dir():
            return joined(path)
        if path.is_file() and (wrong := store.damage(path)):
            raise UserError(f"{path}: {wrong}; {older(path)}")
        return super().load_checkpoint(path, *options, **more)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2, over all processes.

    A subclass, since Lightning's wants the number of processes in numbers, asks no CheckpointIO, and writes into the
    folder that it replaces.
    """

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """By all processes. OSError, in all of them, names the folder; what was there before is there still."""
        path = Path(self.broadcast(str(filepath)))
        part = path.with_name(f".{path.name}.part")
        if self.is_global_zero:
            files.remove(part)  # of a run that was stopped
        self.barrier()
        failure = self.broadcast(self.attempt(checkpoint, part, storage_options))
        if self.is_global_zero:
            files.remove(part) if failure else settle(part, path)
        self.barrier()
        if failure:
            raise OSError(*failure, str(path))

    def attempt(self, checkpoint: dict[str, Any], part: Path, options: Any) -> tuple[int, str] | None:
        """Write it; the error's number and text where the disk did not take it, in whichever process."""
        try:
            super().save_checkpoint(checkpoint, part, options)
            self.barrier()
            each = gather_objects(checkpoint_folder.checksums(part, self.mine(tensor_files(part))))
            if self.is_global_zero:
                found = {name: total for one in each for name, total in one.items()}
                files.write(part / CHECKSUMS, json.dumps(found))
                files.synced(part / META)
                files.synced(part)
        except OSError as error:
            return numbered(error)
        except CheckpointException as error:
            for cause, _ in error.failures.values():
                if isinstance(cause, (OSError, RuntimeError)):  # torch's writer has no errno
                    return numbered(cause)
            raise
        return None

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """ValueError for a folder that is no whole checkpoint; a file of unsharded training is read, too."""
        path = standing(Path(checkpoint_path))
        if path.is_dir():
            self.check(path)
            return self.load_folder(path)
        if path.is_file() and (wrong := store.damage(path)):
            raise UserError(f"{path}: {wrong}; {older(path)}")
        return self.load_file(torch.load(path, map_location="cpu", mmap=True, weights_only=True))

    def load_folder(self, path: Path) -> dict[str, Any]:
        """What sharded training wrote, by any number of processes."""
        module = self.module
        load = partial(checkpoint_folder.load, path)
        module.load_state_dict(load("state_dict", get_model_state_dict(module)), strict=module.strict_loading)
        for at, optimizer in enumerate(self.optimizers):
            name = f"optimizer_{at}"
            if checkpoint_folder.has(path, f"{name}.state."):
                state = load(name, get_optimizer_state_dict(module, optimizer))
                set_optimizer_state_dict(module, optimizer, state, options=StateDictOptions(cpu_offload=True))
            else:
                optimizer.load_state_dict(checkpoint_folder.numbered(checkpoint_folder.read(path, name)))
        return torch.load(path / META, map_location="cpu", weights_only=True)

    def load_file(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Share out what unsharded training wrote. Lightning's own takes the weights' order for the optimiser's."""
        module = self.module
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=module.strict_loading)
        set_model_state_dict(module, checkpoint.pop("state_dict"), options=options)
        for optimizer, state in zip(self.optimizers, checkpoint.pop("optimizer_states"), strict=True):
            refuse_other_groups(optimizer, state)
            if state["state"]:
                named = checkpoint_folder.named(state, self.names(optimizer))
                set_optimizer_state_dict(module, optimizer, named, options=options)
            else:
                optimizer.load_state_dict(state)
        return checkpoint

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Its state, by names; none of one that has made no step: torch would make one, to have something to write."""
        optimizer = getattr(optimizer, "optimizer", optimizer)
        if optimizer.state:
            return super().optimizer_state(optimizer)
        groups = zip(optimizer.param_groups, self.names(optimizer), strict=True)
        return {"state": {}, "param_groups": [group | {"params": names} for group, names in groups]}

    def names(self, optimizer: Optimizer) -> list[list[str]]:
        """Of the weights, in an optimiser's order."""
        names = {id(weight): name for name, weight in self.module.named_parameters()}
        return [[names[id(weight)] for weight in group["params"]] for group in optimizer.param_groups]

    @property
    def module(self) -> LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module

    def mine(self, every: Iterable[Path]) -> list[str]:
        """The names of the files that this process looks at, of all those of a checkpoint."""
        return [file.name for file in every][self.global_rank :: self.world_size]

    def check(self, path: Path) -> None:
        """By all processes, each some of the files; ValueError in all of them."""
        if not checkpoint_folder.is_folder(path):
            checkpoint_folder.check(path)
        names = sorted(checkpoint_folder.written(path))[self.global_rank :: self.world_size]
        each = gather_objects(checkpoint_folder.damaged(path, names))
        if wrong := [name for one in each for name in one]:
            raise UserError(f"{path}: damaged, {wrong[0]} is not what was written; {older(path)}")
        checkpoint_folder.check_sizes(path)


def numbered(error: BaseException) -> tuple[int, str]:
    if isinstance(error, OSError) and error.errno:
        return error.errno, error.strerror or str(error)
    return errno.EIO, str(error).splitlines()[0]


def settle(part: Path, path: Path) -> None:
    """Let `part` take the place of `path`, which is removed last: whenever the machine stops, one of them is whole."""
    if path.exists():
        files.remove(aside(path))
        path.rename(aside(path))
    part.rename(path)
    files.synced(path.parent)
    files.remove(aside(path))
