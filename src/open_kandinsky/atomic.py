"""Files and folders that are written whole or not at all: to another name in the same folder, then renamed."""

import errno
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

ABANDONED = 3600.0  # seconds in which a writer on another machine would have written something


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a name to write to, which takes the place of `path` once it is on the disk, and is removed on failure.

    Whenever the machine stops, `path` is whole or as it was before. OSError names `path`.
    """
    path = Path(path)
    part = beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.chmod(0o644)  # safetensors lets nobody else read
        synced(part)
        part.replace(path)
        synced(path.parent)
    except SafetensorError as error:  # a full disk is one too
        raise OSError(errno.EIO, str(error), str(path)) from error
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    except RuntimeError as error:  # torch.save closes its archive after a failed write, and fails in that too
        if not isinstance(failed := error.__context__, OSError):
            raise
        raise OSError(failed.errno or errno.EIO, failed.strerror or str(failed), str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def write(path: str | Path, data: bytes | str) -> None:
    """Bytes, or text in UTF-8."""
    with replacing(path) as part:
        part.write_bytes(data if isinstance(data, bytes) else data.encode())


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yields a folder to write to, which becomes `path` once all in it is on the disk, and is removed on failure.

    OSError where `path` holds something by then: nothing is overwritten.
    """
    path = Path(path)
    part = beside(path)
    try:
        part.mkdir(parents=True)
        yield part
        for written in [*part.rglob("*"), part]:
            synced(written)
        if path.exists():
            path.rmdir()
        part.rename(path)
        synced(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def beside(path: Path) -> Path:
    """Where this process writes what becomes `path`; the name says whose it is, should the process be killed."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove what killed processes were writing in `folder` or below it; returns what was removed.

    To be called before this process writes there: what bears its number is by then an earlier process's.
    """
    removed = [part for part in folder.rglob(".*.part") if left_behind(part)]
    for part in removed:
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
    return removed


def left_behind(part: Path) -> bool:
    """Whether nobody writes this any more: its process is gone from this machine, or has long been silent elsewhere."""
    writer = re.fullmatch(r"\..+\.(\d+)\.part", part.name)
    if writer is None:
        return False
    pid = int(writer[1])
    here = part.name.endswith(f".{socket.gethostname()}.{pid}.part")
    return (here and (pid == os.getpid() or not alive(pid))) or silence(part) > ABANDONED


def silence(part: Path) -> float:
    """Seconds since something was written to a file, or to any file of a folder."""
    return time.time() - max(path.stat().st_mtime for path in [part, *part.rglob("*")])


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
