"""Writes files and folders whole or not at all: under a temporary name in the same folder, which is then renamed."""

import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

if TYPE_CHECKING:
    from torch import Tensor

ABANDONED = 3600.0  # seconds after which a silent writer on another machine counts as dead
PART = re.compile(r"\..+\.([^.]+)\.(\d+)(\.[0-9a-f]{8})?\.part")  # machine, process id
_writing: set[str] = set()  # temporary names in use by this process


@contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """Yields a new name in the same folder for this process alone; a file or folder left under it is removed.

    The name contains machine and process, so that it can be recognised after the process was killed.
    """
    part = path.with_name(f".{path.name}.{machine()}.{os.getpid()}.{secrets.token_hex(4)}.part")
    _writing.add(part.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
    finally:
        remove(part)
        _writing.discard(part.name)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn every error that a full or broken disk causes in a write into an OSError with a number and this path."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    except RuntimeError as error:  # torch.save fails again as it closes its archive after a failed write
        if not isinstance(failed := error.__context__, OSError):
            raise
        raise OSError(failed.errno or errno.EIO, failed.strerror or str(failed), str(path)) from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name, which replaces `path` once it is on the disk, and is removed on failure.

    Whenever the machine stops, `path` is whole or as it was before. OSError names `path`.
    """
    path = Path(path)
    with naming(path), temporary_path(path) as part:
        yield part
        settle(part, path)


def settle(part: Path, path: Path) -> None:
    """Replace `path` by a file, once that is on the disk."""
    synced(part)
    part.replace(path)
    synced(path.parent)


def write(path: str | Path, data: bytes | str) -> None:
    """Write bytes, or text in UTF-8, as `replacing` does."""
    with replacing(path) as part:
        part.write_bytes(data if isinstance(data, bytes) else data.encode())


def write_once(path: str | Path, text: str) -> str:
    """Write a file if no other process has written it yet; returns its text, whoever wrote it."""
    path = Path(path)
    with naming(path), temporary_path(path) as part:
        part.write_text(text, encoding="utf-8")
        synced(part)
        try:
            path.hardlink_to(part)  # fails if the file exists; renaming would overwrite it
        except FileExistsError:
            pass
        return path.read_text(encoding="utf-8")


def write_tensors(path: str | Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with the permissions of the umask. OSError names the file.

    safetensors writes to a temporary name of its own and leaves it behind when it is killed, so it writes into a folder
    that `remove_leftovers` recognises.
    """
    from safetensors.torch import save_file  # imports torch, which most writers of files do not need

    path = Path(path)
    with naming(path), temporary_path(path) as folder:
        folder.mkdir()
        save_file(dict(tensors), folder / path.name, dict(metadata) if metadata else None)
        (folder / path.name).chmod(0o666 & ~umask())
        settle(folder / path.name, path)


def umask() -> int:
    """The permissions that new files must not have, read without changing them for other threads."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"^Umask:\s*([0-7]+)", status, re.MULTILINE)[1], 8)  # type: ignore[index]
    except (OSError, TypeError):  # not on Linux
        mask = os.umask(0o077)
        os.umask(mask)
        return mask


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder, which becomes `path` once its content is on the disk, and is removed on failure.

    OSError where `path` is not empty by then: nothing is overwritten.
    """
    path = Path(path)
    with temporary_path(path) as part:
        part.mkdir()
        yield part
        for written in [*part.rglob("*"), part]:
            synced(written)
        if path.exists():
            path.rmdir()
        part.rename(path)
        synced(path.parent)


@functools.cache
def machine() -> str:
    """A name of this machine and its process ids: containers may share a host name, and each have a process 1."""
    facts = [socket.gethostname()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            facts.append(os.readlink(source) if "ns" in source else Path(source).read_text().strip())
        except OSError:  # not on Linux
            continue
    return f"{facts[0].replace('.', '-')}-{hashlib.sha256(' '.join(facts).encode()).hexdigest()[:8]}"


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files that killed processes left in `folder` or below; returns their paths."""
    removed = [part for part in folder.rglob(".*.part") if left_behind(part)]
    for part in removed:
        remove(part)
    return removed


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def is_empty(folder: Path) -> bool:
    """Whether a folder is missing, or holds temporary files only."""
    remove_leftovers(folder)
    return not folder.exists() or (folder.is_dir() and all(PART.fullmatch(path.name) for path in folder.iterdir()))


def left_behind(part: Path) -> bool:
    """Whether a temporary file's writer is dead: gone from this machine or, on another, silent for an hour."""
    writer = PART.fullmatch(part.name)
    if writer is None or part.name in _writing:
        return False
    pid = int(writer[2])
    here = writer[1] == machine() and (pid == os.getpid() or not alive(pid))
    return here or silence(part) > ABANDONED


def silence(part: Path) -> float:
    """Seconds since the last write to a file, or to any file of a folder."""
    try:
        return time.time() - max(path.stat().st_mtime for path in [part, *part.rglob("*")])
    except FileNotFoundError:  # its writer has just renamed it
        return 0.0


def alive(pid: int) -> bool:
    """Whether a process of this machine is running. Zombies count as dead."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or not on Linux
        return True
    return state not in ("Z", "X")


def synced(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
