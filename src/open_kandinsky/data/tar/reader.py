"""A tar's members one after another, by their headers alone. What a stranger's makes this machine read is bounded.

The end is two blocks of zeros and the padding after them. tarfile takes any block of zeros for it, and any garbled
header past the first, and is silent about what comes after.

The samples of a tar by their place in it: counted by headers alone, and read without the bodies in between.

A sample is a run of adjacent members of one key; its position says how many samples come before it.
"""

import io
import lzma
import re
import sys
import tarfile
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, groupby
from tarfile import ReadError
from typing import IO, Any, NamedTuple, Protocol, cast, runtime_checkable

from webdataset.tariterators import base_plus_ext

from open_kandinsky.data.tar.opening import open_url
from open_kandinsky.data.tar.sample import IMAGES, TEXTS, Facts, Raw, stem, whole
from open_kandinsky.data.tar.stats import SampleStats

BLOCK = tarfile.BLOCKSIZE
HEADER = 1 << 20  # bytes of one, with long names and the like
PADDING = 1 << 20  # bytes of zeros at an end; tar's own is 10 kB
EXPANDED, SMALL = 100, 1 << 20  # times its own bytes that a compressed archive has, or times a small one's
NAME = 100  # bytes, before what FILE describes
FILE = re.compile(  # POSIX.1-1988 and GNU tar, as both of them and tarfile write it
    rb"(?:[0-7]{7}\0){3}"  # mode, owner, group
    rb"(?P<size>[0-7]{11})\0"
    rb"[0-7]{11}\0"  # time
    rb"(?P<checksum>[0-7]{6})\0 "
    rb"0"  # a file
    rb".{172}"  # link, magic, names of owner and group
    rb"(?:[0-7]{7}\0|\0{8}){2}"  # device
    rb"\0{155}"  # no more of the name
    rb".{12}",
    re.DOTALL,
)
MAGIC = slice(257, 263)
BLANK = sum(b" " * 8) - sum(b"\0 ")  # the checksum counts its own place as blanks


class Header(tarfile.TarInfo):
    """tarfile reads 15 fields, 13 of which nobody asks for; how it reads them can be changed by inheritance only."""

    __slots__ = ()

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Header":
        """Name, size and type as tarfile finds them. Raises what tarfile raises."""
        file = FILE.fullmatch(buf, NAME)
        if file is None or sum(buf) - sum(file["checksum"]) + BLANK != int(file["checksum"], 8):
            return super().frombuf(buf, encoding, errors)
        info = cls(buf[:NAME].partition(b"\0")[0].decode(encoding, errors))
        info.size = int(file["size"], 8)
        return info

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> "Header":
        """Raises what tarfile raises, and ReadError for one without end: names in names, or a map of holes."""
        stream = cast(Bounded, tarfile.fileobj)
        if stream.left >= 0:  # of a header inside another
            return cast(Header, super().fromtarfile(tarfile))
        stream.left = HEADER
        try:
            return cast(Header, super().fromtarfile(tarfile))
        except RecursionError:
            raise ReadError(f"headers within headers at byte {tarfile.offset}") from None
        finally:
            stream.left = -1


class Bounded:
    """A stream of which one header takes no more than HEADER bytes."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.seek, self.tell, self.close = stream, stream.seek, stream.tell, stream.close
        self.left = -1  # of a header that is being read

    def read(self, size: int = -1) -> bytes:
        if self.left >= 0:
            if not 0 <= size <= self.left:
                raise ReadError(f"a header of more than {HEADER:,} bytes")
            self.left -= size
        return self.stream.read(size)


class Unpacked(Bounded):
    """The same of a decompressor, of which each has errors of its own."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.seek = partial(readable, stream.seek)

    def read(self, size: int = -1) -> bytes:
        return readable(super().read, size)


def readable(ask: Callable[[int], Any], size: int) -> Any:
    """Raises ReadError for what cannot be decompressed."""
    try:
        return ask(size)
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise ReadError(f"compressed data are damaged: {error}") from error
    except OSError as error:
        if error.errno is None:  # of gzip and bz2; a disk's has a number
            raise ReadError(f"compressed data are damaged: {error}") from error
        raise


class Archive(tarfile.TarFile):
    """A subclass, since tarfile reads the first header while it opens a file."""

    tarinfo = Header
    most: int | None = None  # bytes that it may have, where it is compressed

    def __init__(self, name: Any = None, mode: Any = "r", fileobj: Any = None, **more: Any) -> None:
        bounded = Bounded if isinstance(fileobj, io.BufferedReader | io.BytesIO) else Unpacked
        super().__init__(name, mode, cast(IO[bytes], bounded(fileobj)), **more)


class Broken(ReadError):
    """Where no more members can be read; `rest` are those whose headers are found after it."""

    def __init__(self, told: str, rest: Iterator[tarfile.TarInfo]) -> None:
        super().__init__(told)
        self.rest = tuple(rest)


@contextmanager
def opened(url: str) -> Iterator[Archive]:
    """The archive at its first member, compressed or not; one that cannot seek is read through."""
    with open_url(url) as stream:
        file, seekable = cast(IO[bytes], stream), stream.seekable()
        try:
            archive = Archive.open(fileobj=file, mode="r:*" if seekable else "r|*", errors="backslashreplace")
        except ReadError as error:
            raise Broken(
                "no tar, compressed or not, by its first header", after(stream) if seekable else iter(())
            ) from error
        with archive:
            if seekable and cast(Any, archive.fileobj).stream is not file:
                archive.most = EXPANDED * max(size_of(stream), SMALL)
            yield archive


def size_of(stream: io.BufferedReader) -> int:
    """Bytes; the place in it stays."""
    place = stream.tell()
    size = stream.seek(0, io.SEEK_END)
    stream.seek(place)
    return size


def headers(archive: Archive) -> Iterator[tarfile.TarInfo]:
    """Every member's. Raises Broken where one is garbled, and at an end that is none."""
    stream = archive.fileobj
    member = archive.next()
    while member is not None:
        if not 0 <= member.size < 1 << 50:  # a negative one would lead back, and round for ever
            raise Broken(f"the member at byte {member.offset} has a size of {member.size}", after(stream))
        if archive.most is not None and archive.offset > archive.most:
            raise ReadError(f"it would be {archive.offset:,} bytes, more than {EXPANDED} times its own")
        yield member
        skip_body(archive)
        member = header(archive)
    check_end(archive)


def skip_body(archive: Archive) -> None:
    """To the next header, by seeking. A body that is not all there is noticed by its last byte."""
    stream = cast(IO[bytes], archive.fileobj)
    if stream.tell() == archive.offset:
        return
    stream.seek(archive.offset - 1)
    if not stream.read(1):
        raise ReadError(f"cut before byte {archive.offset}")


def header(archive: Archive) -> tarfile.TarInfo | None:
    """The header that lies here; None at a block of zeros."""
    try:
        return Header.fromtarfile(archive)
    except tarfile.EOFHeaderError:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    except (tarfile.HeaderError, ValueError) as error:
        raise Broken(f"no header at byte {archive.offset}: {error}", after(archive.fileobj)) from error


def check_end(archive: Archive) -> None:
    """Raises Broken where something comes after the block of zeros that was read, and more zeros."""
    stream = cast(IO[bytes], archive.fileobj)
    place = stream.tell() - BLOCK
    padding = stream.read(PADDING)
    if padding.strip(b"\0") or len(padding) == PADDING:
        raise Broken(f"zeros at byte {place}, and more after them", after(stream, padding))


def after(stream: Any, read: bytes = b"") -> Iterator[tarfile.TarInfo]:
    """What is like a header from here on; `read` is what was read already."""
    blocks = chain((read[at : at + BLOCK] for at in range(0, len(read), BLOCK)), iter(lambda: stream.read(BLOCK), b""))
    for block in blocks:
        if block[MAGIC].startswith(b"ustar"):
            try:
                yield Header.frombuf(block, "utf-8", "backslashreplace")
            except (tarfile.HeaderError, ValueError):
                continue


FORMAT_ERRORS = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)
TAR_ERRORS = (*FORMAT_ERRORS, OSError)
CUT = "truncated or unreadable tar"
GONE = "fewer samples than were counted"
UNREACHABLE = "unreachable shard"
EVERY = range(sys.maxsize)
LARGEST = 256  # MB of a member that is read


class Entry(NamedTuple):
    """A member of a sample: the sample's position and key, and the member's own kind (its ending in lower case)."""

    position: int
    key: str
    kind: str
    member: tarfile.TarInfo


class Cut(tarfile.ReadError):
    """Where a tar breaks; `lost` is how many samples are after it, as far as can be seen."""

    def __init__(self, told: str, lost: int) -> None:
        super().__init__(f"{told}; {lost} sample(s) after it are lost" if lost else told)
        self.lost = lost


def lost(error: Exception) -> int:
    """How many samples what could not be read counts for: one at least."""
    return max(error.lost if isinstance(error, Cut) else 0, 1)


class SampleCount(NamedTuple):
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

    def facts(self, url: str, tally: SampleStats) -> Facts: ...


class TarShards:
    """Samples of indexed tars, asked for by shard and position.

    Whatever of it cannot be read is tallied, by reason, and the rest is given. PermissionError is raised: what may not
    be read will not be read later either.
    """

    def __init__(self, index: Index, sidecars: Sidecars, *, largest: int = LARGEST) -> None:
        self.index, self.sidecars, self.largest = index, sidecars, largest

    @property
    def counts(self) -> Sequence[int]:
        return self.index.counts

    def read(self, shard: int, wanted: Sequence[int], tally: SampleStats) -> Iterator[tuple[int, Raw]]:
        """(position, sample) of those of `wanted` (ascending) that can be read; each other one is in `tally`."""
        if not len(wanted):
            return
        url, given = self.index.urls[shard], 0
        facts = self.sidecars.facts(url, tally)
        reason, detail = GONE, f"the index knows {self.counts[shard]} samples"
        try:
            for position, raw in samples(url, frozenset(wanted), last=wanted[-1], largest=self.largest):
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


def count(url: str) -> SampleCount:
    """Raises OSError where the tar cannot be opened or read; what is wrong inside it is the result's `problem`."""
    found, keys, problem = 0, set(), None
    try:
        for entry, _ in entries(url):
            found = entry.position + 1
            keys.add(entry.key)
    except FORMAT_ERRORS as error:
        problem = str(error)
    if apart := found - len(keys):
        problem = f"{apart} samples are in pieces: a sample's files must be neighbours (tar --sort=name makes them)"
    return SampleCount(found, problem)


def samples(
    url: str, wanted: Container[int] = EVERY, *, last: int = EVERY[-1], largest: int = LARGEST
) -> Iterator[tuple[int, Raw]]:
    """The samples at the positions `wanted`, none after `last`. Raises one of TAR_ERRORS at a cut.

    A cut loses only what was cut: a sample before it that has all that training needs is given first. Of a member of
    more than `largest` MB a sample has its size alone.
    """
    at, raw = -1, None
    try:
        for (position, key, kind, member), data in contents(url, wanted, last, largest << 20):
            if raw is not None and position != at:
                yield at, raw
                raw = None
            at, raw = position, raw or Raw(key, url, {})
            if data is None:
                raw = raw._replace(large=f".{kind} of {member.size:,} bytes, more than max_member_mb={largest}")
            else:
                raw.members.setdefault(kind, data)
    except TAR_ERRORS as error:
        if raw is not None and whole(raw):
            yield at, raw
        elif raw is not None and isinstance(error, Cut):
            error.lost += 1
        raise
    if raw is not None:
        yield at, raw


def contents(url: str, wanted: Container[int], last: int, largest: int) -> Iterator[tuple[Entry, bytes | None]]:
    """Each member that is wanted, and its bytes, if they are no more than `largest`; other bodies are passed over."""
    for entry, archive in entries(url):
        if entry.position > last:
            return
        if entry.position not in wanted:
            continue
        if entry.member.size > largest:
            yield entry, None
        elif (body := archive.extractfile(entry.member)) is not None:
            yield entry, body.read()


def entries(url: str) -> Iterator[tuple[Entry, Archive]]:
    """The members that belong to samples; a key that comes back after another one begins a new sample. Raises Cut."""
    position, before, shard = -1, None, stem(url)
    try:
        with opened(url) as archive:
            for path, kind, member in of_samples(headers(archive)):
                position, before = position + (path != before), path
                yield Entry(position, f"{shard}/{path}", kind, member), archive
    except Broken as broken:
        after = chain([before], (path for path, *_ in of_samples(broken.rest)))
        raise Cut(str(broken), sum(1 for _ in groupby(after)) - 1) from broken


def of_samples(members: Iterable[tarfile.TarInfo]) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Of images and captions: path without ending, ending in lower case, and member."""
    for member in members:
        path, extension = base_plus_ext(member.name)
        kind = (extension or "").lower()
        if path is not None and kind in IMAGES + TEXTS and member.isreg():
            yield path, kind, member
