"""A checkpoint of sharded training: a folder, to which each process wrote what it held (torch.distributed.checkpoint).

`meta.pt` is what belongs to no process, as Lightning writes it; the rest is read by any number of processes.
`checksums.json`, written last, has the CRC-32 of each file, against damage and not against malice.

A checkpoint of a training of ours, a file or a folder: the network as it was after a step, and its average.
"""

import io
import json
import pickle
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from open_kandinsky.core.errors import UserError
from open_kandinsky.weights import store
from open_kandinsky.weights.part import Picked

META, INDEX, CHECKSUMS = "meta.pt", ".metadata", "checksums.json"
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


class PlainValues(DefaultLoadPlanner):
    """Takes tensors and plain values: torch's own planner unpickles whatever else an entry may hold."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], plain(value))


class PlainTree(PlainValues, _EmptyStateDictLoadPlanner):
    """The same, of everything below some names."""


def plain(value: io.BytesIO) -> Any:
    """ValueError for a pickle of something else than tensors and plain values."""
    try:
        return torch.load(value, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"it holds what is no plain value ({' '.join(str(error).split())[:200]})") from error


def is_folder(path: Path) -> bool:
    """Whether a whole one is there."""
    return (path / META).is_file() and (path / INDEX).is_file()


def tensor_files(path: Path) -> tuple[Path, ...]:
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
    with refused(path):  # as torch's own dcp_to_torch_save, but for the file
        _load_state_dict(found, storage_reader=FileSystemReader(path), planner=PlainTree(keys={part}), no_dist=True)
    return found.get(part)


def load(path: Path, part: str, into: dict[str, Any]) -> Any:
    """`into`, with what lies below a name: by all processes, each its shards. The folder was checked."""
    state = {part: into}
    with refused(path):
        dcp.load(state, storage_reader=FileSystemReader(path), planner=PlainValues())
    return state[part]


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """ValueError for what a planner refused, which torch wraps with tracebacks."""
    try:
        yield
    except CheckpointException as error:
        for cause, _ in error.failures.values():
            raise UserError(f"{path}: refused: {store.first_line(cause)}") from error
        raise


def has(path: Path, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in index(path).state_dict_metadata)


def check(path: Path) -> None:
    """ValueError where the folder is no whole checkpoint, is damaged, or holds what would run when it is read."""
    if not is_folder(path):
        raise UserError(f"{path}: not a whole checkpoint, which has {META} and {INDEX}; take another one")
    if wrong := damaged(path, sorted(written(path))):
        raise UserError(f"{path}: damaged, {wrong[0]} is not what was written; take another checkpoint")
    check_sizes(path)


def index(path: Path) -> Metadata:
    """ValueError where it is damaged, or names what is none of its business."""
    try:
        with open(path / INDEX, "rb") as file:
            return Descriptions(file).load()
    except (pickle.UnpicklingError, EOFError, IndexError, AttributeError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path / INDEX}: damaged ({error}); take another checkpoint") from error


def check_sizes(path: Path) -> None:
    """ValueError for files elsewhere, entries that are transformed as they are read, and more bytes than there are."""
    about = index(path)
    for info in about.storage_data.values():
        if Path(info.relative_path).name != info.relative_path or info.transform_descriptors:
            raise UserError(
                f"{path}: refused: an entry in {str(info.relative_path)[:100]!r}, which is no plain file here"
            )
    tensors = [entry for entry in about.state_dict_metadata.values() if isinstance(entry, TensorStorageMetadata)]
    asked = sum(entry.size.numel() * entry.properties.dtype.itemsize for entry in tensors)
    there = sum(file.stat().st_size for file in tensor_files(path))
    if asked > there:
        raise UserError(f"{path}: refused: its index has {asked:,} bytes of tensors, and its files have {there:,}")


def written(path: Path) -> Mapping[str, int]:
    """The checksum of each file as it was written; empty in folders of before version 0.2."""
    file = path / CHECKSUMS
    try:
        found = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        return {CHECKSUMS: 0}  # which it is not
    return found if isinstance(found, dict) else {CHECKSUMS: 0}


def checksums(path: Path, names: Sequence[str]) -> dict[str, int]:
    return {name: checksum(path / name) for name in names}


def checksum(file: Path) -> int:
    """CRC-32 of a file's bytes; -1 where it cannot be read."""
    total = 0
    try:
        with open(file, "rb") as source:
            while chunk := source.read(1 << 22):
                total = zlib.crc32(chunk, total)
    except OSError:
        return -1
    return total


def damaged(path: Path, names: Sequence[str]) -> list[str]:
    """Those of some files that are not as they were written."""
    expected = written(path)
    return [name for name in names if checksum(path / name) != expected[name]]


def older(path: Path) -> str:
    """What to go on from in place of a damaged checkpoint: the newest other one beside it that is whole."""
    others = [standing(other) for other in path.parent.glob("[!.]*.ckpt") if other != path]
    for other in sorted(others, key=lambda other: other.stat().st_mtime_ns, reverse=True):
        if is_folder(other) if other.is_dir() else store.damage(other) is None:
            return f"the newest other one that is whole: resume={other}"
    return "there is no other one that is whole"


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
    return {"state": {place[name]: value for name, value in optimizer.get("state", {}).items()}, "param_groups": groups}


def named(optimizer: dict[str, Any], names: Sequence[Sequence[str]]) -> dict[str, Any]:
    """An optimiser's state, from parameters by their place in its groups to the names of each group."""
    flat = [name for group in names for name in group]
    groups = [group | {"params": [*of]} for group, of in zip(optimizer["param_groups"], names, strict=True)]
    return {"state": {flat[place]: value for place, value in optimizer["state"].items()}, "param_groups": groups}


NETWORK = "network."  # the stage's; an adversary lies beside it


def raw(path: Path) -> Picked:
    """The weights as they were last."""
    state = read(path, "state_dict") if path.is_dir() else store.read_any(path)
    network = {key.removeprefix(NETWORK): x for key, x in state.items() if key.startswith(NETWORK)}
    return Picked(network, dict(Counter(key.partition(".")[0] for key in state if not key.startswith(NETWORK))))


def ema(path: Path) -> Picked:
    """The averaged weights. ValueError where the run kept no average."""
    state, dropped = raw(path)
    average = averages(path)
    if not average:
        raise UserError(f"{path}: weights_of=ema, but its run kept no average (callbacks.ema): take weights_of=raw")
    if stray := sorted(average.keys() - state.keys()):
        raise UserError(f"{path}: {len(stray)} averaged weights are of no weight, {stray[0]!r} among them")
    return Picked(state | average, dropped)


def usual(path: Path) -> Picked:
    """As its run would leave it: averaged where an average was kept."""
    return ema(path) if averages(path) else raw(path)


def averages(path: Path) -> dict:
    file = path / META if path.is_dir() else path
    return store.unpickled(file).get("callbacks", {}).get("EMA", {}).get("average", {})
