"""Weights on disk: safetensors, and other people's pickles, of which only tensors are read."""

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from open_kandinsky import atomic

WEIGHTS = "weights.safetensors"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def write(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Whole or not at all. OSError names the file."""
    atomic.write_tensors(path, {name: value.detach().cpu().contiguous() for name, value in state.items()}, metadata)


def read(path: Path) -> dict[str, Tensor]:
    """ValueError if the file is not there, or is cut short.

    The file is opened for each tensor anew: one that stays mapped is in memory beside what is made of it.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; weights are a folder with {WEIGHTS} and config.yaml")
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
        return {name: _one(path, name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); fetch or export it again") from error


def _one(path: Path, name: str) -> Tensor:
    """Convolutions laid out as they run, so that no second copy is made of them: it would leave holes in the heap."""
    with safe_open(path, "pt") as file:
        x = file.get_tensor(name)
        return x.clone(memory_format=torch.channels_last if x.ndim == 4 else torch.preserve_format)


def read_any(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a checkpoint of torch's, whose `state_dict` is taken if it has one.

    ValueError for a file that is cut short, holds no tensors by name, or would run code.
    """
    if path.suffix == ".safetensors":
        return read(path)
    found = unpickled(path)
    state = found.get("state_dict", found) if isinstance(found, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: no state dict, which is names and their tensors; found: {type(found).__name__}")
    return dict(state)


def unpickled(path: Path) -> Any:
    """What torch.save wrote, if it is made of tensors and plain values. ValueError as in `read_any`."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"  # the newer of torch's two formats, and the one that can be mapped
    if zipped and not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: cut short; fetch it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        if any(word in str(error) for word in ("GLOBAL", "TorchScript")):
            remedy = "have its author save the state dict alone, as safetensors"
            raise ValueError(f"{path}: refused, since opening it would run code that it brings; {remedy}") from error
        raise ValueError(f"{path}: no whole checkpoint of torch's ({first_line(error)}); fetch it again") from error


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
