"""Checkpoints on disk."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from open_kandinsky import atomic


class WholeCheckpoints(TorchCheckpointIO):
    """Whole: the new one or the one before.

    Lightning writes by way of the system's temporary folder, which may be small, and a copy from there may be cut.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """OSError names the file."""
        with atomic.replacing(path) as part, open(part, "wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *options: Any, **more: Any) -> dict[str, Any]:
        """ValueError where the file is cut short, or is no checkpoint."""
        if Path(path).is_file() and not zipfile.is_zipfile(path):
            raise ValueError(f"{path}: not a whole checkpoint; resume from another one")
        return super().load_checkpoint(path, *options, **more)
