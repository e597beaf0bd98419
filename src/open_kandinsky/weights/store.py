"""Weights on disk: safetensors."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from open_kandinsky import atomic

WEIGHTS = "weights.safetensors"


def write(path: Path, state: Mapping[str, Tensor]) -> None:
    """Whole or not at all. OSError names the file."""
    with atomic.replacing(path) as part:
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, part)


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
