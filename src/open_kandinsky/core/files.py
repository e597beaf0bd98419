"""Files and folders that are written whole or not at all: to another name in the same folder, then renamed."""

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

ABANDONED = 3600.0  # seconds in which a writer on another machine would have written something
PART = re.compile(r"\..+\.([^.]+)\.(\d+)(\.[0-9a-f]{8})?\.part")  # machine, process
_writing: set[str] = set()  # names that this process is writing under now


@contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """Yields a new name in the same folder, under which this process alone writes; what bears it in the end is removed.

    The name says who writes, should the process be killed.
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
    """OSError, with a number and this path, for whatever a full or broken disk makes of a write."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    except RuntimeError as error:  # torch.save closes its archive after a failed write, and fails in that too
        if not isinstance(failed := error.__context__, OSError):
            raise
        raise OSError(failed.errno or errno.EIO, failed.strerror or str(failed), str(path)) from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a name to write to, which takes the place of `path` once it is on the disk, and is removed on failure.

    Whenever the machine stops, `path` is whole or as it was before. OSError names `path`.
    """
    path = Path(path)
    with naming(path), temporary_path(path) as part:
        yield part
        settle(part, path)


def settle(part: Path, path: Path) -> None:
    """Let a file take the place of `path`, once it is on the disk."""
    synced(part)
    part.replace(path)
    synced(path.parent)


def write(path: str | Path, data: bytes | str) -> None:
    """Bytes, or text in UTF-8."""
    with replacing(path) as part:
        part.write_bytes(data if isinstance(data, bytes) else data.encode())


def write_once(path: str | Path, text: str) -> str:
    """The text of a file that the first of several processes writes, and the others read."""
    path = Path(path)
    with naming(path), temporary_path(path) as part:
        part.write_text(text, encoding="utf-8")
        synced(part)
        try:
            path.hardlink_to(part)  # fails where it is there, where a renaming would write over it
        except FileExistsError:
            pass
        return path.read_text(encoding="utf-8")


def write_tensors(path: str | Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, readable by whom the umask says. OSError names the file.

    safetensors writes to a name of its own and leaves that behind where it is killed, so it is given a folder of ours,
    which `remove_leftovers` knows.
    """
    from safetensors.torch import save_file  # and torch, which most who write a file have no use for

    path = Path(path)
    with naming(path), temporary_path(path) as folder:
        folder.mkdir()
        save_file(dict(tensors), folder / path.name, dict(metadata) if metadata else None)
        (folder / path.name).chmod(0o666 & ~umask())
        settle(folder / path.name, path)


def umask() -> int:
    """What this process's new files are not to allow, read without changing it for the other threads."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"^Umask:\s*([0-7]+)", status, re.MULTILINE)[1], 8)  # type: ignore[index]
    except (OSError, TypeError):  # no Linux
        mask = os.umask(0o077)
        os.umask(mask)
        return mask


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yields a folder to write to, which becomes `path` once all in it is on the disk, and is removed on failure.

    OSError where `path` holds something by then: nothing is overwritten.
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
    """This machine and its numbers of processes: containers may share a host's name, and each count from 1."""
    told = [socket.gethostname()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            told.append(os.readlink(source) if "ns" in source else Path(source).read_text().strip())
        except OSError:  # no Linux
            continue
    return f"{told[0].replace('.', '-')}-{hashlib.sha256(' '.join(told).encode()).hexdigest()[:8]}"


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove what killed processes were writing in `folder` or below it; returns what was removed."""
    removed = [part for part in folder.rglob(".*.part") if left_behind(part)]
    for part in removed:
        remove(part)
    return removed


def remove(path: Path) -> None:
    """A file, a folder, or nothing."""
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def is_empty(folder: Path) -> bool:
    """Whether there is no such folder, or nothing in it but what processes were writing when they were killed."""
    remove_leftovers(folder)
    return not folder.exists() or (folder.is_dir() and all(PART.fullmatch(path.name) for path in folder.iterdir()))


def left_behind(part: Path) -> bool:
    """Whether nobody writes this any more: its process is gone from this machine, or has long been silent elsewhere."""
    writer = PART.fullmatch(part.name)
    if writer is None or part.name in _writing:
        return False
    pid = int(writer[2])
    here = writer[1] == machine() and (pid == os.getpid() or not alive(pid))
    return here or silence(part) > ABANDONED


def silence(part: Path) -> float:
    """Seconds since something was written to a file, or to any file of a folder."""
    try:
        return time.time() - max(path.stat().st_mtime for path in [part, *part.rglob("*")])
    except FileNotFoundError:  # its writer has just finished with it
        return 0.0


def alive(pid: int) -> bool:
    """Whether a process of this machine still works: one that is dead, and not yet waited for, does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's, or this is no Linux
        return True
    return state not in ("Z", "X")


def synced(path: Path) -> None:
    """On the disk, not only in the system's cache."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
