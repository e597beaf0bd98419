"""Files and folders that are written whole or not at all: to another name in the same folder, then renamed."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a name to write to, which takes the place of `path` once it is on the disk, and is removed on failure.

    Whenever the machine stops, `path` is whole or as it was before. OSError names `path`.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
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
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
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


def synced(path: Path) -> None:
    """On the disk, not only in the system's cache."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
