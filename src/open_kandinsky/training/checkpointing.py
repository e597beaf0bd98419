"""How checkpoints are written and read: files by `WholeCheckpoints`, folders of sharded training by `ShardedStrategy`.

Each is replaced as a whole: whenever a process is killed, the new checkpoint or the one before is there, undamaged.
Each of the two also reads the other's.
"""

import errno
import json
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
    """Lightning's CheckpointIO for files, which writes beside the checkpoint and then renames.

    Lightning's own writes to the system's temporary folder, which may be small, and a copy from there may be cut short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """OSError names the file. A folder of that name, from sharded training, is removed once the file is whole."""
        path = Path(path)
        to = path.with_name(f".{path.name}.part") if path.is_dir() else path
        with files.replacing(to) as part, open(part, "wb") as file:
            torch.save(checkpoint, file)
        if to != path:
            settle(to, path)

    def load_checkpoint(self, path: str | Path, *options: Any, **more: Any) -> dict[str, Any]:
        """UserError if the file is damaged or no checkpoint. The shards of a folder are joined."""
        path = standing(Path(path))
        if path.is_dir():
            return joined(path)
        refuse_damaged(path)
        return super().load_checkpoint(path, *options, **more)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2 strategy, over all processes.

    A subclass, since Lightning's needs the number of processes as a number, uses no CheckpointIO, and writes into the
    very folder that it replaces.
    """

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Written by all processes. OSError, in all of them, names the folder; the old checkpoint is then kept."""
        path = Path(self.broadcast(str(filepath)))
        part = path.with_name(f".{path.name}.part")
        if self.is_global_zero:
            files.remove(part)  # of a run that was stopped
        self.barrier()
        failure = self.broadcast(self.write_folder(checkpoint, part, storage_options))
        if self.is_global_zero:
            files.remove(part) if failure else settle(part, path)
        self.barrier()
        if failure:
            raise OSError(*failure, str(path))

    def write_folder(self, checkpoint: dict[str, Any], part: Path, options: Any) -> tuple[int, str] | None:
        """Write the folder and its checksums; returns errno and text of an OSError in any process."""
        try:
            super().save_checkpoint(checkpoint, part, options)
            self.barrier()
            names = [file.name for file in tensor_files(part)][self.global_rank :: self.world_size]
            each = gather_objects(checkpoint_folder.checksums(part, names))
            if self.is_global_zero:
                checksums = {name: checksum for one in each for name, checksum in one.items()}
                files.write(part / CHECKSUMS, json.dumps(checksums))
                files.synced(part / META)
                files.synced(part)
        except OSError as error:
            return errno_and_text(error)
        except CheckpointException as error:
            for cause, _ in error.failures.values():
                if isinstance(cause, (OSError, RuntimeError)):  # torch's writer has no errno
                    return errno_and_text(cause)
            raise
        return None

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """UserError for a folder that is no whole checkpoint. A file of unsharded training is read too."""
        path = standing(Path(checkpoint_path))
        if path.is_dir():
            self.check(path)
            return self.load_folder(path)
        refuse_damaged(path)
        return self.load_file(torch.load(path, map_location="cpu", mmap=True, weights_only=True))

    def load_folder(self, path: Path) -> dict[str, Any]:
        """Load a folder that sharded training wrote, by any number of processes."""
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
        """Shard a file of unsharded training. Lightning's own assumes that the optimiser's order is the weights'."""
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
        """An optimiser's state, by names of weights; empty before its first step, for which torch would invent one."""
        optimizer = getattr(optimizer, "optimizer", optimizer)
        if optimizer.state:
            return super().optimizer_state(optimizer)
        groups = zip(optimizer.param_groups, self.names(optimizer), strict=True)
        return {"state": {}, "param_groups": [group | {"params": names} for group, names in groups]}

    def names(self, optimizer: Optimizer) -> list[list[str]]:
        """The names of the weights in each of an optimiser's groups, in its order."""
        names = {id(weight): name for name, weight in self.module.named_parameters()}
        return [[names[id(weight)] for weight in group["params"]] for group in optimizer.param_groups]

    @property
    def module(self) -> LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module

    def check(self, path: Path) -> None:
        """Verify checksums, each process those of some files; UserError in all of them if a file is damaged."""
        if not checkpoint_folder.is_folder(path):
            checkpoint_folder.check(path)
        names = sorted(checkpoint_folder.written(path))[self.global_rank :: self.world_size]
        each = gather_objects(checkpoint_folder.damaged(path, names))
        if wrong := [name for one in each for name in one]:
            raise UserError(f"{path}: damaged, {wrong[0]} is not what was written; {older(path)}")
        checkpoint_folder.check_sizes(path)


def refuse_damaged(file: Path) -> None:
    if file.is_file() and (wrong := store.damage(file)):
        raise UserError(f"{file}: {wrong}; {older(file)}")


def errno_and_text(error: BaseException) -> tuple[int, str]:
    if isinstance(error, OSError) and error.errno:
        return error.errno, error.strerror or str(error)
    return errno.EIO, str(error).splitlines()[0]


def settle(part: Path, path: Path) -> None:
    """Replace `path` by `part`; the old one is removed last, so that one of them is whole whenever a machine stops."""
    if path.exists():
        files.remove(aside(path))
        path.rename(aside(path))
    part.rename(path)
    files.synced(path.parent)
    files.remove(aside(path))
