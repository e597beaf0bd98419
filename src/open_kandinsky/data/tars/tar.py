"""The samples of a tar by their place in it: counted by headers alone, and read without the bodies in between.

A sample is a run of adjacent members of one key; its position says how many samples come before it.
"""

import lzma
import sys
import tarfile
import zlib
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, NamedTuple, Protocol, cast, runtime_checkable

from webdataset.tariterators import base_plus_ext

from open_kandinsky.data.tars.header import Header
from open_kandinsky.data.tars.opening import open_url
from open_kandinsky.data.tars.sample import IMAGES, TEXTS, Raw, stem, whole
from open_kandinsky.data.tars.sidecars import Facts
from open_kandinsky.data.tars.tally import Skipped

FORMAT_ERRORS = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)
TAR_ERRORS = (*FORMAT_ERRORS, OSError)
CUT = "truncated or unreadable tar"
GONE = "gone since the index was made"
UNREACHABLE = "unreachable shard"
EVERY = range(sys.maxsize)
LARGEST = 1 << 50  # bytes a member


class Entry(NamedTuple):
    """A member of a sample: the sample's position and key, and the member's own kind (its ending in lower case)."""

    position: int
    key: str
    kind: str
    member: tarfile.TarInfo


class Counted(NamedTuple):
    """How many samples a tar has up to its end, or to where it breaks; `problem` says what breaks it."""

    count: int
    problem: str | None


@runtime_checkable
class Index(Protocol):
    """A list of shards and how many samples each has."""

    @property
    def urls(self) -> Sequence[str]: ...

    @property
    def counts(self) -> Sequence[int]: ...


@runtime_checkable
class Sidecars(Protocol):
    """What is known of a shard's samples beside the shard: sample key -> facts."""

    def facts(self, url: str, tally: Skipped) -> Facts: ...


class TarShards:
    """Samples of indexed tars, asked for by shard and position.

    Whatever of it cannot be read is tallied, by reason, and the rest is given. PermissionError is raised: what may not
    be read will not be read later either.
    """

    def __init__(self, index: Index, sidecars: Sidecars) -> None:
        self.index, self.sidecars = index, sidecars

    @property
    def counts(self) -> Sequence[int]:
        return self.index.counts

    def read(self, shard: int, wanted: Sequence[int], tally: Skipped) -> Iterator[tuple[int, Raw]]:
        """(position, sample) of those of `wanted` (ascending) that can be read; each other one is in `tally`."""
        if not len(wanted):
            return
        url, given = self.index.urls[shard], 0
        facts = self.sidecars.facts(url, tally)
        reason, detail = GONE, f"the index knows {self.counts[shard]} samples"
        try:
            for position, raw in samples(url, frozenset(wanted), last=wanted[-1]):
                given += 1
                yield position, raw._replace(facts=facts.of(raw.key))
        except PermissionError:
            raise
        except FileNotFoundError as error:
            detail = str(error)
        except FORMAT_ERRORS as error:
            reason, detail = CUT, str(error)
        except OSError as error:
            reason, detail = UNREACHABLE, str(error)
        if lost := len(wanted) - given:
            tally.add(reason, key=stem(url), shard=url, detail=detail, count=lost)


def count(url: str) -> Counted:
    """Raises OSError where the tar cannot be opened or read; what is wrong inside it is the result's `problem`."""
    found = 0
    try:
        with opened(url) as archive:
            for entry in entries(archive, url):
                found = entry.position + 1
    except FORMAT_ERRORS as error:
        return Counted(found, str(error))
    return Counted(found, None)


def samples(url: str, wanted: Container[int] = EVERY, *, last: int = EVERY[-1]) -> Iterator[tuple[int, Raw]]:
    """The samples at the positions `wanted`, none after `last`. Raises one of TAR_ERRORS at a cut.

    A cut loses only what was cut: a sample before it that has all that training needs is given first.
    """
    at, raw = -1, None
    try:
        for position, key, kind, data in contents(url, wanted, last):
            if raw is not None and position != at:
                yield at, raw
                raw = None
            at, raw = position, raw or Raw(key, url, {})
            raw.members.setdefault(kind, data)
    except TAR_ERRORS:
        if raw is not None and whole(raw):
            yield at, raw
        raise
    if raw is not None:
        yield at, raw


def contents(url: str, wanted: Container[int], last: int) -> Iterator[tuple[int, str, str, bytes]]:
    """Position, key, kind and bytes of each member that is wanted; other bodies are passed over."""
    with opened(url) as archive:
        for position, key, kind, member in entries(archive, url):
            if position > last:
                return
            if position in wanted and (body := archive.extractfile(member)) is not None:
                yield position, key, kind, body.read()


@contextmanager
def opened(url: str) -> Iterator[tarfile.TarFile]:
    """The archive at its first member, compressed or not; one that cannot seek is read through."""
    with open_url(url) as stream:
        mode = "r:*" if stream.seekable() else "r|*"
        file = cast(IO[bytes], stream)
        with tarfile.open(fileobj=file, mode=mode, errors="backslashreplace", tarinfo=Header) as archive:
            yield archive


def entries(archive: tarfile.TarFile, url: str) -> Iterator[Entry]:
    """The members that belong to samples; a key that comes back after another one begins a new sample."""
    position, before, shard = -1, None, stem(url)
    for member in headers(archive):
        path, extension = base_plus_ext(member.name)
        kind = (extension or "").lower()
        if path is None or kind not in IMAGES + TEXTS or not member.isreg():
            continue
        position, before = position + (path != before), path
        yield Entry(position, f"{shard}/{path}", kind, member)


def headers(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Every member's header. tarfile itself takes a cut or garbled one, past the first, for the end of the archive.

    Raises tarfile.ReadError there: the real end is a block of zeros.
    """
    member = archive.next()
    while member is not None:
        if not 0 <= member.size < LARGEST:  # a negative one would lead back, and round for ever
            raise tarfile.ReadError(f"the member at byte {member.offset} has a size of {member.size}")
        yield member
        skip_body(archive)
        member = header(archive)


def skip_body(archive: tarfile.TarFile) -> None:
    """To the next header, by seeking. A body that is not all there is noticed by its last byte."""
    stream = cast(IO[bytes], archive.fileobj)
    if stream.tell() == archive.offset:
        return
    stream.seek(archive.offset - 1)
    if not stream.read(1):
        raise tarfile.ReadError(f"cut before byte {archive.offset}")


def header(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The header that lies here; None at the end-of-archive mark."""
    try:
        return Header.fromtarfile(archive)
    except tarfile.EOFHeaderError:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    except (tarfile.HeaderError, ValueError) as error:
        raise tarfile.ReadError(f"no header at byte {archive.offset}: {error}") from error
