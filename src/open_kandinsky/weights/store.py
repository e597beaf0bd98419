"""Weights on disk: safetensors, written whole or not at all."""

import errno
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "weights.safetensors"


def write(path: Path, state: Mapping[str, Tensor]) -> None:
    """To another name beside it, fsynced and renamed: `path` is complete or as it was. OSError names it."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, partial)
        partial.chmod(0o644)  # safetensors lets nobody else read
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except SafetensorError as error:  # a full disk is one too
        raise OSError(errno.EIO, str(error), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Tensor]:
    """ValueError if the file is not there, or is cut short."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; weights are a folder with {WEIGHTS} and config.yaml")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); fetch or export it again") from error


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
