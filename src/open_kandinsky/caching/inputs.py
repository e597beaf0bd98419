"""The tars that are read: each whole, with a hash of its bytes, and what tells cheaply whether it has changed."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.tars.opening import REMOTE, open_url
from open_kandinsky.data.tars.sample import stem
from open_kandinsky.data.tars.stamps import Stamp, stamps

CHUNK = 1 << 20


class Digest(NamedTuple):
    """Of a tar's bytes."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Input:
    """A tar, whose output has its name."""

    url: str

    @property
    def name(self) -> str:
        return stem(self.url)

    @property
    def stamp(self) -> Stamp:
        """Its size and version, without reading it."""
        return stamps([self.url])[0]

    @property
    def digest(self) -> Digest:
        """By reading all of it."""
        return digest(self.url)

    @contextmanager
    def at_hand(self) -> Iterator[tuple[str, "Future[Digest]"]]:
        """A path on this machine, and the digest, which is ready once the block has read what it wants."""
        way = fetched if REMOTE.match(self.url) or self.url.startswith("pipe:") else in_place
        with ThreadPoolExecutor(1) as hasher, way(self.url, hasher) as at_hand:
            yield at_hand


def inputs(urls: Sequence[str]) -> list[Input]:
    """One for each tar. ValueError where two would have one output."""
    made: dict[str, Input] = {}
    for url in urls:
        one = made.setdefault(stem(url), Input(url))
        if one.url != url:
            told = f"{one.url!r} and {url!r} are both called {one.name}, and so would what is made of them"
            raise UserError(f"{told}: precompute them into two folders, or rename one")
    return list(made.values())


@contextmanager
def in_place(url: str, hasher: ThreadPoolExecutor) -> Iterator[tuple[str, "Future[Digest]"]]:
    """A tar of this machine, hashed by another thread beside the reading: the disk is read once for both."""
    yield url, hasher.submit(digest, url)


@contextmanager
def fetched(url: str, hasher: ThreadPoolExecutor) -> Iterator[tuple[str, "Future[Digest]"]]:
    """A tar from elsewhere, hashed as it comes, into a file of this machine that is removed in the end."""
    with TemporaryDirectory(prefix="open-kandinsky-") as folder:
        path = Path(folder) / f"{stem(url)}.tar"
        with open_url(url) as source, open(path, "wb") as copy:
            found = hashed(source, copy.write)
        yield str(path), hasher.submit(lambda: found)


def digest(url: str) -> Digest:
    """Of all bytes behind an address."""
    with open_url(url) as source:
        return hashed(source, len)


def hashed(source: BufferedIOBase, each: Callable[[bytes], Any]) -> Digest:
    """The digest of what is left of a stream; `each` is given every chunk of it."""
    size, sha256 = 0, hashlib.sha256()
    while chunk := source.read(CHUNK):
        each(chunk)
        sha256.update(chunk)
        size += len(chunk)
    return Digest(size, sha256.hexdigest())
