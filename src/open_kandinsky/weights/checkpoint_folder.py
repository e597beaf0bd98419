"""A checkpoint of sharded training: a folder, to which each process wrote what it held (torch.distributed.checkpoint).

`meta.pt` is what belongs to no process, as Lightning writes it; the rest is read by any number of processes.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

META, INDEX = "meta.pt", ".metadata"
# What an index is made of: descriptions of tensors. It is a pickle, and torch would call whatever else it names.
KNOWN = {
    *(("torch.distributed.checkpoint.metadata", f"{kind}StorageMetadata") for kind in ("Tensor", "Chunk", "Bytes")),
    *(("torch.distributed.checkpoint.metadata", name) for name in ("Metadata", "TensorProperties", "MetadataIndex")),
    *(("torch.distributed.checkpoint.metadata", name) for name in ("StorageMeta", "_MEM_FORMAT_ENCODING")),
    *(("torch.distributed.checkpoint.filesystem", name) for name in ("_StorageInfo", "_StoragePrefix")),
    *(("torch", "Size"), ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath")),
}
DTYPES = {str(dtype).removeprefix("torch.") for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


class Descriptions(pickle.Unpickler):
    """Reads an index that names nothing but what it should: a subclass is the one way that pickle has for it."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN and not (module == "torch" and name in DTYPES):
            raise pickle.UnpicklingError(f"it would call {module}.{name}")
        return super().find_class(module, name)


def is_folder(path: Path) -> bool:
    """Whether a whole one is there."""
    return (path / META).is_file() and (path / INDEX).is_file()


def files(path: Path) -> tuple[Path, ...]:
    return tuple(sorted(file for file in path.iterdir() if file.is_file()))


def standing(path: Path) -> Path:
    """`path`, or the one before it, where a machine stopped as the new one was about to take its place."""
    before = aside(path)
    return before if before.exists() and not path.exists() else path


def aside(path: Path) -> Path:
    """Where a checkpoint lies while another takes its place."""
    return path.with_name(f".{path.name}.old")


def read(path: Path, part: str) -> Any:
    """What lies below a name (`state_dict`), whole, on the CPU; None where nothing does. ValueError as `check`."""
    check(path)
    found: dict[str, Any] = {}
    # As torch's own dcp_to_torch_save, but for the file.
    _load_state_dict(
        found, storage_reader=FileSystemReader(path), planner=_EmptyStateDictLoadPlanner(keys={part}), no_dist=True
    )
    return found.get(part)


def check(path: Path) -> None:
    """ValueError where the folder is no whole checkpoint, or its index names what is none of its business."""
    if not is_folder(path):
        raise ValueError(f"{path}: not a whole checkpoint, which has {META} and {INDEX}; take another one")
    try:
        with open(path / INDEX, "rb") as file:
            Descriptions(file).load()
    except (pickle.UnpicklingError, EOFError, IndexError) as error:
        raise ValueError(f"{path / INDEX}: damaged ({error}); take another checkpoint") from error


def joined(path: Path) -> dict[str, Any]:
    """As one process would have written it: Lightning's checkpoint, optimisers' states numbered and not named."""
    check(path)
    meta: dict[str, Any] = torch.load(path / META, map_location="cpu", weights_only=True)
    meta["state_dict"] = read(path, "state_dict")
    meta["optimizer_states"] = []
    while state := read(path, f"optimizer_{len(meta['optimizer_states'])}"):
        meta["optimizer_states"].append(numbered(state))
    return meta


def numbered(optimizer: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state, from parameters by name to parameters by their place in its groups."""
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    place = {name: at for at, name in enumerate(names)}
    groups = [group | {"params": [place[name] for name in group["params"]]} for group in optimizer["param_groups"]]
    return {"state": {place[name]: value for name, value in optimizer["state"].items()}, "param_groups": groups}
