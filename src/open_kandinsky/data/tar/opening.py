"""Addresses of tar shards: expanded from what a person writes, and opened wherever they lie.

Addresses are files of this machine, anything that fsspec knows, or the output of a `pipe:` command. A request that
fails is repeated where it failed, a few times, and every request has a time limit.
"""

import errno
import glob
import io
import os
import re
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.core import url_to_fs
from webdataset.gopen import gopen
from webdataset.shardlists import expand_urls

from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import nearest
from open_kandinsky.data.folder import FOLDER, FolderTar, folder_urls

REMOTE = re.compile(r"[a-z][a-z0-9+]*://")
WILDCARD = re.compile(r"://[^/]*/[^?]*[*\[]")  # neither in a host nor in a query
BLOCK = 4 << 20  # bytes a request
TIMEOUT = 60.0  # seconds a request
ATTEMPTS = 4
PAUSE = 1.0  # seconds before the second attempt; doubled before each other
REFUSED = (401, 403)
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError")


def shard_urls(urls: str | list[str], *, allow_pipe: bool = False) -> list[str]:
    """Every shard that `urls` names: a folder (its *.tar, sorted), a glob, a brace range, an address, or a list.

    `folder:DIR` is a folder of pictures, which is read as if it were shards (data/folder.py).
    Braces are expanded as webdataset does it. An address is anything that fsspec knows (s3://, gs://, https:// ...);
    one with wildcards, or of a folder (`/` at its end), is looked up there, any other is taken as it is. Raises
    UserError, saying what was found instead, where nothing is there, or a package is missing. `pipe:` addresses run
    shell commands: refused unless `allow_pipe`.
    """
    entries = [urls] if isinstance(urls, str) else list(urls)
    if not entries or not all(entries):
        raise UserError(f"no shards named: urls={urls!r}; give a folder of .tar files, a pattern or a list")
    return [shard for url in entries for shard in expand(str(url), allow_pipe)]


def expand(url: str, allow_pipe: bool) -> list[str]:
    """The shards of one entry."""
    if url.startswith("pipe:"):
        if not allow_pipe:
            raise UserError(f"{url!r} would run a shell command; set allow_pipe=true if you trust where it comes from")
        return [url]
    if url.startswith(FOLDER):
        return folder_urls(url)
    try:
        expanded = expand_urls(url) if "{" in url and not Path(url).exists() else [url]
    except AssertionError as error:
        told = "${NAME} stands for the environment variable WDS_NAME, which is not set"
        raise UserError(f"{url!r}: {told}; set it, or write the address out") from error
    return [shard for one in expanded for shard in (remote_shards(one) if REMOTE.match(one) else local_shards(one))]


def remote_shards(url: str) -> list[str]:
    """Files behind a protocol: of a folder (`/` at its end), of a glob, or the one file, which is not looked up yet."""
    pattern = f"{url}*.tar" if url.endswith("/") else url
    system, path = filesystem(pattern)
    if not WILDCARD.search(pattern):
        return [url]
    found = retry(lambda: request(system, "glob", path, timeout=TIMEOUT * ATTEMPTS), url)
    if not found:
        raise UserError(f"no shard at {url!r}: the listing there has no such file")
    return sorted(system.unstrip_protocol(name) for name in found)


def local_shards(url: str) -> list[str]:
    """Files of this machine: of a folder, of a glob, or the one file. None of them is taken for a command."""
    path = Path(url).expanduser()
    if path.is_dir():
        found = sorted(map(str, path.glob("*.tar"))) or refuse_folder(path)
    else:
        found = [str(path)] if path.is_file() else sorted(glob.glob(str(path))) or refuse_missing(path)
    return [f"./{shard}" if shard.startswith("pipe:") else shard for shard in found]


def refuse_folder(path: Path) -> list[str]:
    """Raises UserError for a folder without a shard, naming what it holds."""
    names = sorted(child.name for child in path.iterdir())
    below = sorted({str(tar.parent) for tar in path.glob("*/*.tar")})
    found = f"it holds {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else "it is empty"
    remedy = f"did you mean {below[0]!r}?" if below else "write shards with img2dataset (output_format=webdataset)"
    raise UserError(f"no .tar file in the folder {str(path)!r}: {found}; {remedy}")


def refuse_missing(path: Path) -> list[str]:
    """Raises UserError for a name that nothing has, naming the nearest that exists."""
    parent = next(folder for folder in path.absolute().parents if folder.is_dir())
    missing = path.absolute().relative_to(parent).parts[0]
    near = nearest(missing, [child.name for child in parent.iterdir()])
    found = f"did you mean {str(parent / near)!r}?" if near else f"{str(parent)!r} has no such name"
    raise UserError(f"no shard at {str(path)!r}: {found}")


def open_url(url: str) -> io.BufferedReader:
    """A shard's bytes; seekable, but for `pipe:`.

    Raises OSError where it cannot be read: FileNotFoundError where it is not there, PermissionError where it may not be
    read at all.
    """
    if url.startswith("pipe:"):
        return io.BufferedReader(Command(url), BLOCK)
    if url.startswith(FOLDER):
        return io.BufferedReader(FolderTar(url), BLOCK)
    if REMOTE.match(url):
        return io.BufferedReader(Remote(url), BLOCK)
    return open(url, "rb")


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of an address, and the path in it. Raises UserError for an unknown one or a missing package."""
    protocol = url.partition("://")[0]
    try:
        return url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url!r} needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise UserError(f"{url!r}: no file system is known by {protocol!r} ({error}); is it mistyped?") from error


class Remote(io.RawIOBase):
    """A file behind a protocol, read by ranges; a range that failed is requested again.

    A subclass of RawIOBase because io's buffers read from nothing else.
    """

    def __init__(self, url: str) -> None:
        self.url, self.at = url, 0
        self.system, self.path = filesystem(url)
        info = retry(lambda: request(self.system, "info", self.path, timeout=TIMEOUT), url)
        self.body: bytes | None = None  # the whole file, where the server has no ranges
        self.size: int = info.get("size") or 0
        if not self.size or info.get("partial") is False:
            limit = TIMEOUT * (1 + self.size // BLOCK)
            self.body = retry(lambda: request(self.system, "cat_file", self.path, timeout=limit), url)
            self.size = len(self.body or b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        start, stop = self.at, min(self.at + len(buffer), self.size)
        if start >= stop:
            return 0
        buffer[: stop - start] = retry(lambda: self.range(start, stop), self.url)
        self.at = stop
        return stop - start

    def range(self, start: int, stop: int) -> bytes:
        """Raises OSError where fewer bytes come than were requested."""
        if self.body is not None:
            return self.body[start:stop]
        data: bytes = request(self.system, "cat_file", self.path, start=start, end=stop, timeout=TIMEOUT)
        if len(data) == stop - start:
            return data
        if len(data) != self.size:
            raise OSError(errno.EIO, f"{len(data)} bytes came of {stop - start}")
        self.body = data  # the server knows no ranges and sent all
        return data[start:stop]


class Command(io.RawIOBase):
    """The output of a `pipe:` command, by webdataset's gopen, but with a time limit for each read."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.pipe: Any = gopen(url, "rb", bufsize=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not select.select([self.pipe.stream], [], [], TIMEOUT)[0]:
            raise TimeoutError(errno.ETIMEDOUT, f"nothing came for {TIMEOUT:.0f} seconds", self.url)
        data = os.read(self.pipe.stream.fileno(), len(buffer))
        if not data and (status := self.pipe.proc.wait(TIMEOUT)):
            raise OSError(errno.EIO, f"the command failed with {status}", self.url)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Ends the command too, whether or not it was read to its end."""
        if not self.closed:
            self.pipe.stream.close()
            self.pipe.proc.kill()
            self.pipe.proc.wait()
        super().close()


def request(system: fsspec.AbstractFileSystem, method: str, *args: Any, timeout: float, **options: Any) -> Any:
    """One call of a file system. TimeoutError after `timeout` seconds, where the file system can be interrupted."""
    if isinstance(system, AsyncFileSystem):
        return sync(system.loop, getattr(system, f"_{method}"), *args, timeout=timeout, **options)
    return getattr(system, method)(*args, **options)


def retry(call: Callable[[], Any], url: str) -> Any:
    """The result of one of several attempts. Raises OSError with the address, at once where repeating is of no use."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except Exception as error:  # each file system fails in its own way
            refuse_hopeless(error, url)
            if attempt == ATTEMPTS:
                raise OSError(errno.EIO, f"{type(error).__name__}: {error} ({ATTEMPTS} attempts)", url) from error
        time.sleep(PAUSE * 2 ** (attempt - 1))


def refuse_hopeless(error: Exception, url: str) -> None:
    """Raises for errors that no other attempt would mend: the file is not there, or may not be read."""
    status = getattr(error, "status", getattr(error.__cause__, "status", None))
    if isinstance(error, PermissionError) or status in REFUSED or type(error).__name__ in NO_CREDENTIALS:
        remedy = "give this machine credentials that may read it"
        raise PermissionError(errno.EACCES, f"{error}; {remedy}", url) from error
    # fsspec's HTTP reports any failure in finding a size as a missing file
    hidden = error.__cause__ is not None and url.startswith("http") and status not in (404, 410)
    if isinstance(error, FileNotFoundError) and not hidden:
        raise FileNotFoundError(errno.ENOENT, "not there", url) from error
