"""Memory that is free and not yet the system's.

Weights on disk: safetensors, and other people's pickles, of which only tensors are read.

What is written here has a checksum inside, which is compared when it is read: a disk's flipped bit is no weight. It is
a CRC-32, against damage and not against malice.
"""

import ctypes
import hashlib
import json
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError


def give_back() -> None:
    """Freed memory, holes inside of the heap too, to the system: glibc keeps it otherwise. Elsewhere, nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


WEIGHTS, CHECKSUM = "weights.safetensors", "crc32"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def write(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Whole or not at all, with its checksum, unless there is other metadata. OSError names the file.

    Not with it: safetensors writes several entries in another order each time.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    files.write_tensors(path, tensors, metadata or {CHECKSUM: f"{checksum(tensors):08x}"})


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """Of names, types, shapes and numbers."""
    total = 0
    for name in sorted(tensors):
        total = _checked(total, name, tensors[name])
    return total


def _checked(total: int, name: str, x: Tensor) -> int:
    about = json.dumps([name, str(x.dtype), list(x.shape)]).encode()
    return zlib.crc32(x.reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(about, total))


def read(path: Path) -> dict[str, Tensor]:
    """ValueError if the file is not there, is cut short, or is not what was written.

    The file is opened for each tensor anew: one that stays mapped is in memory beside what is made of it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; weights are a folder with {WEIGHTS} and config.yaml")
    try:
        with safe_open(path, "pt") as file:
            names, written = sorted(file.keys()), (file.metadata() or {}).get(CHECKSUM)
        state, total = {}, 0
        for name in names:
            state[name], total = _one(path, name, total, checking=written is not None)
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); fetch or export it again") from error
    if written is not None and written != f"{total:08x}":
        raise UserError(f"{path}: damaged, its checksum is {total:08x} where {written} was written; export it again")
    return state


def _one(path: Path, name: str, total: int, *, checking: bool) -> tuple[Tensor, int]:
    """A tensor, and the checksum after it.

    Convolutions are laid out as they run, so that no second copy is made of them: it would leave holes in the heap.
    """
    with safe_open(path, "pt") as file:
        x = file.get_tensor(name)
        total = _checked(total, name, x) if checking else total
        return x.clone(memory_format=torch.channels_last if x.ndim == 4 else torch.preserve_format), total


def read_any(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a checkpoint of torch's, whose `state_dict` is taken if it has one.

    ValueError for a file that is cut short, holds no tensors by name, or would run code.
    """
    if path.suffix == ".safetensors":
        return read(path)
    found = unpickled(path)
    state = found.get("state_dict", found) if isinstance(found, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: no state dict, which is names and their tensors; found: {type(found).__name__}")
    return dict(state)


def unpickled(path: Path) -> Any:
    """What torch.save wrote, if it is made of tensors and plain values. ValueError as in `read_any`."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    zipped = is_zipped(path)
    if zipped and (wrong := damage(path)):
        raise UserError(f"{path}: {wrong}; fetch it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise any
        if any(word in str(error) for word in ("GLOBAL", "TorchScript")):
            remedy = "have its author save the state dict alone, as safetensors"
            raise UserError(f"{path}: refused, since opening it would run code that it brings; {remedy}") from error
        raise UserError(f"{path}: no whole checkpoint of torch's ({first_line(error)}); fetch it again") from error


def is_zipped(path: Path) -> bool:
    """Whether a file is of the newer of torch's two formats, which has checksums and can be mapped."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def damage(path: Path) -> str | None:
    """What is wrong with a file that torch.save wrote; None where it is as it was written.

    By the CRC-32 of each tensor, which torch writes and does not look at when it maps a file.
    """
    try:
        if not zipfile.is_zipfile(path):
            return "cut short, or no checkpoint"
        with zipfile.ZipFile(path) as file:
            if any(record.compress_type != zipfile.ZIP_STORED for record in file.infolist()):
                return "compressed, as torch writes nothing"
            wrong = file.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        return f"damaged ({first_line(error)})"
    return None if wrong is None else f"damaged, at {wrong}"


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
