"""Checkpoints on disk."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO


class WholeCheckpoints(TorchCheckpointIO):
    """Written beside their place and renamed: the file of that name is whole, the new one or the one before.

    Lightning writes by way of the system's temporary folder, which may be small, and a copy from there may be cut.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """OSError names the file."""
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            part.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, *options: Any, **more: Any) -> dict[str, Any]:
        """ValueError where the file is cut short, or is no checkpoint."""
        if Path(path).is_file() and not zipfile.is_zipfile(path):
            raise ValueError(f"{path}: not a whole checkpoint; resume from another one")
        return super().load_checkpoint(path, *options, **more)
