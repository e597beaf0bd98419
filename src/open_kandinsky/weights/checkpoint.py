"""Checkpoints of our trainings: a file by Lightning or, of a sharded training, a folder.

To a folder each process writes its shards (torch.distributed.checkpoint), and any number of processes can read them.
`.metadata` is the index of the shards: a pickle, of which only plain descriptions are read. `meta.pt` is the rest of
Lightning's checkpoint. `checksums.json`, written last, has the CRC-32 of each file, against damage and not against
malice.

`raw`, `ema` and `usual` take the network's weights, or their average, from either kind.
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
# The classes of an index, which describe tensors. It is a pickle, and torch would call anything else that it names.
INDEX_CLASSES = {
    *(("torch.distributed.checkpoint.metadata", f"{kind}StorageMetadata") for kind in ("Tensor", "Chunk", "Bytes")),
    *(("torch.distributed.checkpoint.metadata", name) for name in ("Metadata", "TensorProperties", "MetadataIndex")),
    *(("torch.distributed.checkpoint.metadata", name) for name in ("StorageMeta", "_MEM_FORMAT_ENCODING")),
    *(("torch.distributed.checkpoint.filesystem", name) for name in ("_StorageInfo", "_StoragePrefix")),
    *(("torch", "Size"), ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath")),
}
DTYPES = {str(dtype).removeprefix("torch.") for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


class IndexUnpickler(pickle.Unpickler):
    """Refuses other classes than an index needs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in INDEX_CLASSES and not (module == "torch" and name in DTYPES):
            raise pickle.UnpicklingError(f"it would call {module}.{name}")
        return super().find_class(module, name)


class PlainValues(DefaultLoadPlanner):
    """Loads tensors and plain values only: torch's own planner unpickles anything."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], plain(value))


class PlainTree(PlainValues, _EmptyStateDictLoadPlanner):
    """As PlainValues, for all entries below the names of `keys`."""


def plain(value: io.BytesIO) -> Any:
    """The content of a pickle. ValueError unless it is tensors and plain values."""
    try:
        return torch.load(value, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"it holds what is no plain value ({' '.join(str(error).split())[:200]})") from error


def is_folder(path: Path) -> bool:
    """Whether `path` is a whole checkpoint folder."""
    return (path / META).is_file() and (path / INDEX).is_file()


def tensor_files(path: Path) -> tuple[Path, ...]:
    return tuple(sorted(file for file in path.iterdir() if file.is_file()))


def standing(path: Path) -> Path:
    """`path`, or its former content, where a machine stopped before a new one was put in its place."""
    former = aside(path)
    return former if former.exists() and not path.exists() else path


def aside(path: Path) -> Path:
    """The name that a checkpoint's former content has while a new one is put in its place."""
    return path.with_name(f".{path.name}.old")


def read(path: Path, part: str) -> Any:
    """All entries below a name (`state_dict`), unsharded, on the CPU; None if there are none. ValueError as `check`."""
    check(path)
    state: dict[str, Any] = {}
    with refused(path):  # as torch's own dcp_to_torch_save, which writes a file
        _load_state_dict(state, storage_reader=FileSystemReader(path), planner=PlainTree(keys={part}), no_dist=True)
    return state.get(part)


def load(path: Path, part: str, into: dict[str, Any]) -> Any:
    """Fill `into` with the entries below a name. All processes call this, each for its shards; `check` comes first."""
    state = {part: into}
    with refused(path):
        dcp.load(state, storage_reader=FileSystemReader(path), planner=PlainValues())
    return state[part]


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """ValueError for an entry that a planner refused, which torch wraps together with tracebacks."""
    try:
        yield
    except CheckpointException as error:
        for cause, _ in error.failures.values():
            raise UserError(f"{path}: refused: {store.first_line(cause)}") from error
        raise


def has(path: Path, prefix: str) -> bool:
    """Whether any entry's name begins with `prefix`."""
    return any(name.startswith(prefix) for name in index(path).state_dict_metadata)


def check(path: Path) -> None:
    """ValueError where the folder is not a whole checkpoint, is damaged, or would run code when it is read."""
    if not is_folder(path):
        raise UserError(f"{path}: not a whole checkpoint, which has {META} and {INDEX}; take another one")
    if wrong := damaged(path, sorted(written(path))):
        raise UserError(f"{path}: damaged, {wrong[0]} is not what was written; take another checkpoint")
    check_sizes(path)


def index(path: Path) -> Metadata:
    """The index of a folder's entries. ValueError where it is damaged, or would run code."""
    try:
        with open(path / INDEX, "rb") as file:
            return IndexUnpickler(file).load()
    except (pickle.UnpicklingError, EOFError, IndexError, AttributeError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path / INDEX}: damaged ({error}); take another checkpoint") from error


def check_sizes(path: Path) -> None:
    """ValueError for files in other folders, for entries that are transformed on reading, and for too many bytes."""
    entries = index(path)
    for info in entries.storage_data.values():
        if Path(info.relative_path).name != info.relative_path or info.transform_descriptors:
            raise UserError(
                f"{path}: refused: an entry in {str(info.relative_path)[:100]!r}, which is no plain file here"
            )
    tensors = [entry for entry in entries.state_dict_metadata.values() if isinstance(entry, TensorStorageMetadata)]
    indexed = sum(entry.size.numel() * entry.properties.dtype.itemsize for entry in tensors)
    on_disk = sum(file.stat().st_size for file in tensor_files(path))
    if indexed > on_disk:
        raise UserError(f"{path}: refused: its index has {indexed:,} bytes of tensors, and its files have {on_disk:,}")


def written(path: Path) -> Mapping[str, int]:
    """The checksum of each file as it was written; empty in folders of before version 0.2."""
    file = path / CHECKSUMS
    try:
        sums = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        sums = None
    return sums if isinstance(sums, dict) else {CHECKSUMS: 0}  # a checksum that the damaged file does not have


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
    """The files among `names` that are not as they were written."""
    expected = written(path)
    return [name for name in names if checksum(path / name) != expected[name]]


def older(path: Path) -> str:
    """A remedy for a damaged checkpoint: to resume from the newest whole one in the same folder."""
    others = [standing(other) for other in path.parent.glob("[!.]*.ckpt") if other != path]
    for other in sorted(others, key=lambda other: other.stat().st_mtime_ns, reverse=True):
        if is_folder(other) if other.is_dir() else store.damage(other) is None:
            return f"the newest other one that is whole: resume={other}"
    return "there is no other one that is whole"


def joined(path: Path) -> dict[str, Any]:
    """A folder as a single process would have written it: Lightning's checkpoint, optimisers' parameters by number."""
    check(path)
    meta: dict[str, Any] = torch.load(path / META, map_location="cpu", weights_only=True)
    meta["state_dict"] = read(path, "state_dict")
    meta["optimizer_states"] = []
    while state := read(path, f"optimizer_{len(meta['optimizer_states'])}"):
        meta["optimizer_states"].append(numbered(state))
    return meta


def numbered(optimizer: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state by parameters' numbers in its groups, from one by their names."""
    place = {name: i for i, name in enumerate(name for group in optimizer["param_groups"] for name in group["params"])}
    groups = [group | {"params": [place[name] for name in group["params"]]} for group in optimizer["param_groups"]]
    return {"state": {place[name]: value for name, value in optimizer.get("state", {}).items()}, "param_groups": groups}


def named(optimizer: dict[str, Any], names: Sequence[Sequence[str]]) -> dict[str, Any]:
    """An optimiser's state by parameters' names, `names` for each group, from one by their numbers in its groups."""
    flat = [name for group in names for name in group]
    groups = [group | {"params": [*of]} for group, of in zip(optimizer["param_groups"], names, strict=True)]
    return {"state": {flat[place]: value for place, value in optimizer["state"].items()}, "param_groups": groups}


NETWORK = "network."  # prefix of the stage's network; a discriminator has another


def raw(path: Path) -> Picked:
    """The weights after the last step."""
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
    """The weights that the run would end with: averaged where it keeps an average."""
    return ema(path) if averages(path) else raw(path)


def averages(path: Path) -> dict:
    file = path / META if path.is_dir() else path
    return store.unpickled(file).get("callbacks", {}).get("EMA", {}).get("average", {})
