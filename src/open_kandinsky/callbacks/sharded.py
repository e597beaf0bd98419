"""The strategy of sharded training, and its checkpoints: folders that are whole, or what they were before."""

import errno
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.api import CheckpointException

from open_kandinsky import atomic
from open_kandinsky.weights.checkpoint_folder import META, aside, check, standing


class Sharded(ModelParallelStrategy):
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
            atomic.remove(part)  # of a run that was stopped
        self.barrier()
        failure = self.broadcast(self.attempt(checkpoint, part, storage_options))
        if self.is_global_zero:
            atomic.remove(part) if failure else settle(part, path)
        self.barrier()
        if failure:
            raise OSError(*failure, str(path))

    def attempt(self, checkpoint: dict[str, Any], part: Path, options: Any) -> tuple[int, str] | None:
        """Write it; the error's number and text where the disk did not take it, in whichever process."""
        try:
            super().save_checkpoint(checkpoint, part, options)
            if self.is_global_zero:
                atomic.synced(part / META)
                atomic.synced(part)
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
            check(path)
        elif len(self.optimizers) > 1:  # Lightning tells whose state is whose by numbers that begin anew in each
            raise ValueError(f"{path}: of unsharded training with several optimisers: go on with strategy=ddp")
        return super().load_checkpoint(path, weights_only)


def numbered(error: BaseException) -> tuple[int, str]:
    if isinstance(error, OSError) and error.errno:
        return error.errno, error.strerror or str(error)
    return errno.EIO, str(error).splitlines()[0]


def settle(part: Path, path: Path) -> None:
    """Let `part` take the place of `path`, which is removed last: whenever the machine stops, one of them is whole."""
    if path.exists():
        atomic.remove(aside(path))
        path.rename(aside(path))
    part.rename(path)
    atomic.synced(path.parent)
    atomic.remove(aside(path))
