"""From what a person writes (a folder, a pattern, a brace range, a list) to the shards it means.

Bytes of a shard wherever it lies: on this machine, behind any protocol that fsspec knows, or out of a command.

A request that fails is asked again, from where it failed; none waits for ever.
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
from braceexpand import braceexpand
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.core import url_to_fs
from webdataset.gopen import gopen

from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import nearest


def shard_urls(urls: str | list[str], *, allow_pipe: bool = False) -> list[str]:
    """Every shard that `urls` names: a folder (its *.tar, sorted), a glob, a brace range, an address, or a list.

    An address is anything that fsspec knows (s3://, gs://, https:// ...); one with wildcards, or of a folder (`/` at
    its end), is looked up there, any other is taken as it is. Raises ValueError, saying what was found instead, where
    nothing is there, or a package is missing. `pipe:` addresses run shell commands: refused unless `allow_pipe`.
    """
    given = [urls] if isinstance(urls, str) else list(urls)
    if not given or not all(given):
        raise UserError(f"no shards named: urls={urls!r}; give a folder of .tar files, a pattern or a list")
    return [shard for url in given for shard in expand(str(url), allow_pipe)]


def expand(url: str, allow_pipe: bool) -> list[str]:
    """The shards of one entry."""
    if url.startswith("pipe:"):
        return [piped(url, allow_pipe)]
    expanded = list(braceexpand(url)) if "{" in url and not Path(url).exists() else [url]
    return [shard for one in expanded for shard in (remote(one) if REMOTE.match(one) else local(one))]


def piped(url: str, allow_pipe: bool) -> str:
    """The address itself, where running its command was allowed."""
    if not allow_pipe:
        raise UserError(f"{url!r} would run a shell command; set allow_pipe=true if you trust where it comes from")
    return url


def remote(url: str) -> list[str]:
    """Files behind a protocol: of a folder, of a glob, or the one file, which is not looked for yet."""
    filesystem(url)
    if not (found := listed(url)):
        raise UserError(f"no shard at {url!r}: the listing there has no such file")
    return found


def local(url: str) -> list[str]:
    """Files on this machine: of a folder, of a glob, or the one file."""
    path = Path(url).expanduser()
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        return sorted(str(shard) for shard in path.glob("*.tar")) or refuse_folder(path)
    return sorted(glob.glob(str(path))) or refuse_missing(path)


def refuse_folder(path: Path) -> list[str]:
    """The folder is there and holds no shard: name what it holds."""
    held = sorted(child.name for child in path.iterdir())
    below = sorted({str(tar.parent) for tar in path.glob("*/*.tar")})
    found = f"it holds {', '.join(held[:5])}{' ...' if len(held) > 5 else ''}" if held else "it is empty"
    remedy = f"did you mean {below[0]!r}?" if below else "write shards with img2dataset (output_format=webdataset)"
    raise UserError(f"no .tar file in the folder {str(path)!r}: {found}; {remedy}")


def refuse_missing(path: Path) -> list[str]:
    """Nothing has that name: name the nearest that exists."""
    parent = next(folder for folder in path.absolute().parents if folder.is_dir())
    missing = path.absolute().relative_to(parent).parts[0]
    near = nearest(missing, [child.name for child in parent.iterdir()])
    found = f"did you mean {str(parent / near)!r}?" if near else f"{str(parent)!r} has no such name"
    raise UserError(f"no shard at {str(path)!r}: {found}")


REMOTE = re.compile(r"[a-z][a-z0-9+]*://")
WILDCARD = re.compile(r"://[^/]*/[^?]*[*\[]")  # neither in a host nor in a query
BLOCK = 4 << 20  # bytes a request
TIMEOUT = 60.0  # seconds a request
ATTEMPTS = 4
PAUSE = 1.0  # seconds before the second attempt; doubled before each other
REFUSED = (401, 403)
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError")


def open_url(url: str) -> io.BufferedReader:
    """A shard's bytes; seekable, but for `pipe:`.

    Raises OSError where it cannot be read: FileNotFoundError where it is not there, PermissionError where it may not be
    read at all.
    """
    if url.startswith("pipe:"):
        return io.BufferedReader(Command(url), BLOCK)
    if REMOTE.match(url):
        return io.BufferedReader(Remote(url), BLOCK)
    return open(url, "rb")


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of an address, and the address's path there. Raises ValueError where it cannot be met."""
    protocol = url.partition("://")[0]
    try:
        return url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url!r} needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise UserError(f"{url!r}: no file system is known by {protocol!r} ({error}); is it mistyped?") from error


def listed(url: str) -> list[str]:
    """The addresses that an address with wildcards stands for, or that end in .tar in a folder (`/` at its end)."""
    pattern = f"{url}*.tar" if url.endswith("/") else url
    if not WILDCARD.search(pattern):
        return [url]
    system, path = filesystem(pattern)
    found = patiently(lambda: asked(system, "glob", path, timeout=TIMEOUT * ATTEMPTS), url)
    return sorted(system.unstrip_protocol(name) for name in found)


class Remote(io.RawIOBase):
    """A file behind a protocol, read by ranges: a range that failed is asked for again.

    RawIOBase is what io's buffers read from: there is no other way to a seekable file of one's own.
    """

    def __init__(self, url: str) -> None:
        self.url, self.at = url, 0
        self.system, self.path = filesystem(url)
        info = details(self.system, self.path, url)
        self.body: bytes | None = None  # all of it, where ranges are not to be had
        self.size: int = info.get("size") or 0
        if not self.size or info.get("partial") is False:
            self.body = self.all()
            self.size = len(self.body)

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
        buffer[: stop - start] = patiently(lambda: self.range(start, stop), self.url)
        self.at = stop
        return stop - start

    def all(self) -> bytes:
        limit = TIMEOUT * (1 + self.size // BLOCK)
        return patiently(lambda: asked(self.system, "cat_file", self.path, timeout=limit), self.url)

    def range(self, start: int, stop: int) -> bytes:
        """Raises OSError where fewer bytes come than were asked for."""
        if self.body is not None:
            return self.body[start:stop]
        data: bytes = asked(self.system, "cat_file", self.path, start=start, end=stop, timeout=TIMEOUT)
        if len(data) == stop - start:
            return data
        if len(data) != self.size:
            raise OSError(errno.EIO, f"{len(data)} bytes came of {stop - start}")
        self.body = data  # the server knows no ranges and sent everything
        return data[start:stop]


class Command(io.RawIOBase):
    """What a `pipe:` command writes, by webdataset's gopen, but for reads that would wait for ever."""

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
        """The command ends too, whether or not it was read to its end."""
        if not self.closed:
            self.pipe.stream.close()
            self.pipe.proc.kill()
            self.pipe.proc.wait()
        super().close()


def details(system: fsspec.AbstractFileSystem, path: str, url: str) -> dict[str, Any]:
    """What a file system says of a file: its size, and more."""
    return patiently(lambda: asked(system, "info", path, timeout=TIMEOUT), url)


def asked(system: fsspec.AbstractFileSystem, verb: str, *args: Any, timeout: float, **more: Any) -> Any:
    """One request. TimeoutError after `timeout` seconds, where the file system can be interrupted."""
    if isinstance(system, AsyncFileSystem):
        return sync(system.loop, getattr(system, f"_{verb}"), *args, timeout=timeout, **more)
    return getattr(system, verb)(*args, **more)


def patiently(ask: Callable[[], Any], url: str) -> Any:
    """Asks a few times. Raises OSError with the address: at once where it is of no use to ask again."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return ask()
        except Exception as error:  # each file system fails in its own way
            refuse_hopeless(error, url)
            if attempt == ATTEMPTS:
                raise OSError(errno.EIO, f"{type(error).__name__}: {error} ({ATTEMPTS} attempts)", url) from error
        time.sleep(PAUSE * 2 ** (attempt - 1))


def refuse_hopeless(error: Exception, url: str) -> None:
    """Raises for what no other attempt would mend: the file is not there, or nobody lets us read it."""
    status = getattr(error, "status", getattr(error.__cause__, "status", None))
    nameless = type(error).__name__ in NO_CREDENTIALS
    if isinstance(error, PermissionError) or status in REFUSED or nameless:
        remedy = "give this machine credentials that may read it"
        raise PermissionError(errno.EACCES, f"{error}; {remedy}", url) from error
    # fsspec's HTTP calls everything that fails in asking for a size a missing file
    hidden = error.__cause__ is not None and url.startswith("http") and status not in (404, 410)
    if isinstance(error, FileNotFoundError) and not hidden:
        raise FileNotFoundError(errno.ENOENT, "not there", url) from error
