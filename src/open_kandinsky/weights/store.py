"""Files of weights: safetensors, and torch's pickles, from which only tensors and plain values are read.

A file written here contains the CRC-32 of its tensors, which is compared when it is read: against damage, not against
malice.
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

WEIGHTS, CHECKSUM = "weights.safetensors", "crc32"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def return_freed_memory() -> None:
    """Give freed memory back to the system, which glibc keeps for itself; does nothing elsewhere."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def write(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors whole or not at all. OSError names the file.

    The metadata is the checksum, unless other metadata is given: safetensors writes several entries in random order.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    files.write_tensors(path, tensors, metadata or {CHECKSUM: f"{checksum(tensors):08x}"})


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of the tensors' names, types, shapes and numbers."""
    total = 0
    for name in sorted(tensors):
        total = _continued(total, name, tensors[name])
    return total


def _continued(total: int, name: str, x: Tensor) -> int:
    """The checksum of the tensors so far, and one more."""
    about = json.dumps([name, str(x.dtype), list(x.shape)]).encode()
    return zlib.crc32(x.reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(about, total))


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. ValueError if it is missing, cut short, or not what was written.

    The file is opened anew for each tensor: a tensor that stays mapped takes memory in addition to its copy.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; weights are a folder with {WEIGHTS} and config.yaml")
    try:
        with safe_open(path, "pt") as file:
            names, written = sorted(file.keys()), (file.metadata() or {}).get(CHECKSUM)
        state, total = {}, 0
        for name in names:
            with safe_open(path, "pt") as file:
                x = file.get_tensor(name)
                total = _continued(total, name, x) if written is not None else total
                # Convolutions in the layout in which they run: a later copy would leave holes in the heap.
                state[name] = x.clone(memory_format=torch.channels_last if x.ndim == 4 else torch.preserve_format)
                del x
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); fetch or export it again") from error
    if written is not None and written != f"{total:08x}":
        raise UserError(f"{path}: damaged, its checksum is {total:08x} where {written} was written; export it again")
    return state


def read_any(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a file by torch.save, of its `state_dict` if it has one.

    ValueError for a file that is cut short, holds no tensors by name, or would run code.
    """
    if path.suffix == ".safetensors":
        return read(path)
    content = unpickled(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: no state dict, which is names and their tensors; found: {type(content).__name__}")
    return dict(state)


def unpickled(path: Path) -> Any:
    """The content of a file by torch.save, if that is tensors and plain values. ValueError as `read_any`."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"  # the newer of torch's two formats, which has checksums and can be mapped
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


def damage(path: Path) -> str | None:
    """What is wrong with a file by torch.save; None where it is as it was written.

    By the CRC-32 of each tensor, which torch writes and does not compare when it maps a file.
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
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
