"""Checkpoints on disk, of training that is not sharded."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from open_kandinsky.callbacks.sharded import settle
from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.weights import store
from open_kandinsky.weights.checkpoint_folder import joined, older, standing


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
