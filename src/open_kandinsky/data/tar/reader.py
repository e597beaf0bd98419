"""Reads the samples of a tar by their position: counted by headers alone, the bodies between wanted samples skipped.

Headers are read by a pattern and not by tarfile: with it the loader runs at 0.90 to 0.95 of webdataset's speed, without
it at 0.83 to 0.89 (goal: 0.9; benchmarks/README.md).

`read_samples` decodes whole shards in order; training reads by `TarShards`.

A sample is a run of adjacent members with one key; its position is the number of samples before it. A tar ends with two
blocks of zeros and padding. tarfile takes any block of zeros, and any garbled header but the first, for the end, and is
silent about what follows; here that is an error, which counts the samples that are lost. The memory and time that a
hostile tar can cost are bounded: headers, members, padding, and the expansion of compressed archives.
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

from open_kandinsky.core.errors import BadSample
from open_kandinsky.data.tar.opening import open_url, shard_urls
from open_kandinsky.data.tar.sample import IMAGES, TEXTS, Facts, Raw, Sample, decode, is_complete, stem
from open_kandinsky.data.tar.stats import SampleStats
from open_kandinsky.data.transforms import MAX_PIXELS

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
    """A header read by `FILE` where it matches: tarfile parses 15 fields, of which 2 are used here.

    A subclass because tarfile lets its reading be changed in no other way.
    """

    __slots__ = ()

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Header":
        """Name, size and type, equal to tarfile's. Raises what tarfile raises."""
        file = FILE.fullmatch(buf, NAME)
        if file is None or sum(buf) - sum(file["checksum"]) + BLANK != int(file["checksum"], 8):
            return super().frombuf(buf, encoding, errors)
        info = cls(buf[:NAME].partition(b"\0")[0].decode(encoding, errors))
        info.size = int(file["size"], 8)
        return info

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> "Header":
        """Raises what tarfile raises, and ReadError for an endless one: long names in long names, or a map of holes."""
        stream = cast(Bounded, tarfile.fileobj)
        if stream.left >= 0:  # a header inside another
            return cast(Header, super().fromtarfile(tarfile))
        stream.left = HEADER
        try:
            return cast(Header, super().fromtarfile(tarfile))
        except RecursionError:
            raise ReadError(f"headers within headers at byte {tarfile.offset}") from None
        finally:
            stream.left = -1


class Bounded:
    """A stream of which one header may read at most HEADER bytes."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.seek, self.tell, self.close = stream, stream.seek, stream.tell, stream.close
        self.left = -1  # bytes that the header being read may still read; -1 between headers

    def read(self, size: int = -1) -> bytes:
        if self.left >= 0:
            if not 0 <= size <= self.left:
                raise ReadError(f"a header of more than {HEADER:,} bytes")
            self.left -= size
        return self.stream.read(size)


class Decompressed(Bounded):
    """The same for a decompressor; the errors of each kind become ReadError."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.seek = partial(decompress, stream.seek)

    def read(self, size: int = -1) -> bytes:
        return decompress(super().read, size)


def decompress(call: Callable[[int], Any], size: int) -> Any:
    """`call(size)`. Raises ReadError for data that cannot be decompressed."""
    try:
        return call(size)
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise ReadError(f"compressed data are damaged: {error}") from error
    except OSError as error:
        if error.errno is None:  # of gzip and bz2; a disk's has a number
            raise ReadError(f"compressed data are damaged: {error}") from error
        raise


class Archive(tarfile.TarFile):
    """A tar whose headers are `Header`s. A subclass because tarfile reads the first header while it opens a file."""

    tarinfo = Header
    max_bytes: int | None = None  # of a compressed archive, decompressed

    def __init__(self, name: Any = None, mode: Any = "r", fileobj: Any = None, **more: Any) -> None:
        bounded = Bounded if isinstance(fileobj, io.BufferedReader | io.BytesIO) else Decompressed
        super().__init__(name, mode, cast(IO[bytes], bounded(fileobj)), **more)


class Broken(ReadError):
    """No more members can be read; `rest` are the members whose headers are found further on."""

    def __init__(self, message: str, rest: Iterator[tarfile.TarInfo]) -> None:
        super().__init__(message)
        self.rest = tuple(rest)


@contextmanager
def opened(url: str) -> Iterator[Archive]:
    """The archive at its first member, compressed or not; a stream that cannot seek is read through."""
    with open_url(url) as stream:
        file, seekable = cast(IO[bytes], stream), stream.seekable()
        try:
            archive = Archive.open(fileobj=file, mode="r:*" if seekable else "r|*", errors="backslashreplace")
        except ReadError as error:
            rest = headers_after(stream) if seekable else iter(())
            raise Broken("no tar, compressed or not, by its first header", rest) from error
        with archive:
            if seekable and cast(Any, archive.fileobj).stream is not file:
                position = stream.tell()
                archive.max_bytes = EXPANDED * max(stream.seek(0, io.SEEK_END), SMALL)
                stream.seek(position)
            yield archive


def headers(archive: Archive) -> Iterator[tarfile.TarInfo]:
    """The header of every member. Raises Broken for a garbled one, and where something follows the end."""
    stream, member = cast(IO[bytes], archive.fileobj), archive.next()
    while member is not None:
        if not 0 <= member.size < 1 << 50:  # a negative one would lead back, in an endless loop
            raise Broken(f"the member at byte {member.offset} has a size of {member.size}", headers_after(stream))
        if archive.max_bytes is not None and archive.offset > archive.max_bytes:
            raise ReadError(f"it would be {archive.offset:,} bytes, more than {EXPANDED} times its own")
        yield member
        if stream.tell() != archive.offset:  # skip the body; its last byte shows whether it is complete
            stream.seek(archive.offset - 1)
            if not stream.read(1):
                raise ReadError(f"cut before byte {archive.offset}")
        member = next_header(archive)
    end, padding = stream.tell() - BLOCK, stream.read(PADDING)
    if padding.strip(b"\0") or len(padding) == PADDING:
        raise Broken(f"zeros at byte {end}, and more after them", headers_after(stream, padding))


def next_header(archive: Archive) -> tarfile.TarInfo | None:
    """The header at the stream's position; None at a block of zeros. Raises Broken for anything else."""
    try:
        return Header.fromtarfile(archive)
    except tarfile.EOFHeaderError:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    except (tarfile.HeaderError, ValueError) as error:
        raise Broken(f"no header at byte {archive.offset}: {error}", headers_after(archive.fileobj)) from error


def headers_after(stream: Any, read: bytes = b"") -> Iterator[tarfile.TarInfo]:
    """Whatever looks like a header from here on; `read` are bytes that were read already."""
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
    """A tar breaks off; `lost` is how many samples follow, as far as can be seen."""

    def __init__(self, message: str, lost: int) -> None:
        super().__init__(f"{message}; {lost} sample(s) after it are lost" if lost else message)
        self.lost = lost


def lost(error: Exception) -> int:
    """How many samples an error costs: at least one."""
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
    """Reads the file of facts beside a shard; a missing or damaged one is remarked in `stats`."""

    def facts(self, url: str, stats: SampleStats) -> Facts: ...


class TarShards:
    """Samples of indexed tars by shard and position.

    Samples that cannot be read are counted by reason, and the others are yielded. PermissionError is raised: a file
    that may not be read will not be readable later either.
    """

    def __init__(self, index: Index, sidecars: Sidecars, *, largest: int = LARGEST) -> None:
        self.index, self.sidecars, self.largest = index, sidecars, largest

    @property
    def counts(self) -> Sequence[int]:
        return self.index.counts

    def read(self, shard: int, wanted: Sequence[int], stats: SampleStats) -> Iterator[tuple[int, Raw]]:
        """(position, sample) of the positions `wanted` (ascending) that can be read; the others are in `stats`."""
        if not len(wanted):
            return
        url, read = self.index.urls[shard], 0
        facts = self.sidecars.facts(url, stats)
        reason, detail = GONE, f"the index knows {self.counts[shard]} samples"
        try:
            for position, raw in samples(url, frozenset(wanted), last=wanted[-1], largest=self.largest):
                read += 1
                yield position, raw._replace(facts=facts.of(raw.key))
        except PermissionError:
            raise
        except FileNotFoundError as error:
            detail = str(error)
        except FORMAT_ERRORS as error:
            reason, detail = CUT, str(error)
        except OSError as error:
            reason, detail = UNREACHABLE, str(error)
        if lost := len(wanted) - read:
            stats.add(reason, key=stem(url), shard=url, detail=detail, count=lost)


def count(url: str) -> SampleCount:
    """Raises OSError where the tar cannot be opened or read; what is wrong inside it is the result's `problem`."""
    total, keys, problem = 0, set(), None
    try:
        for entry, _ in entries(url):
            total = entry.position + 1
            keys.add(entry.key)
    except FORMAT_ERRORS as error:
        problem = str(error)
    if apart := total - len(keys):
        problem = f"{apart} samples are in pieces: a sample's files must be neighbours (tar --sort=name makes them)"
    return SampleCount(total, problem)


def samples(
    url: str, wanted: Container[int] = EVERY, *, last: int = EVERY[-1], largest: int = LARGEST
) -> Iterator[tuple[int, Raw]]:
    """The samples at the positions `wanted`, none after `last`. Raises one of TAR_ERRORS at a cut.

    Only samples behind the cut are lost: one before it that has all that training needs is yielded first. A member of
    more than `largest` MB is not read, and named in its sample.
    """
    at, raw = -1, None
    try:
        for (position, key, kind, member), archive in entries(url):
            if position > last:
                break
            if position not in wanted:
                continue
            if raw is not None and position != at:
                yield at, raw
                raw = None
            at, raw = position, raw or Raw(key, url, {})
            if member.size > largest << 20:
                raw = raw._replace(large=f".{kind} of {member.size:,} bytes, more than max_member_mb={largest}")
            elif (body := archive.extractfile(member)) is not None:
                raw.members.setdefault(kind, body.read())
    except TAR_ERRORS as error:
        if raw is not None and is_complete(raw):
            yield at, raw
        elif raw is not None and isinstance(error, Cut):
            error.lost += 1
        raise
    if raw is not None:
        yield at, raw


def entries(url: str) -> Iterator[tuple[Entry, Archive]]:
    """The members of samples; a key that comes back after another one begins a new sample. Raises Cut."""
    position, previous, shard = -1, None, stem(url)
    try:
        with opened(url) as archive:
            for path, kind, member in pictures_and_texts(headers(archive)):
                position, previous = position + (path != previous), path
                yield Entry(position, f"{shard}/{path}", kind, member), archive
    except Broken as broken:
        paths = chain([previous], (path for path, *_ in pictures_and_texts(broken.rest)))
        raise Cut(str(broken), sum(1 for _ in groupby(paths)) - 1) from broken


def pictures_and_texts(members: Iterable[tarfile.TarInfo]) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Path without ending, ending in lower case, and header of each member that is a picture or text."""
    for member in members:
        path, extension = base_plus_ext(member.name)
        kind = (extension or "").lower()
        if path is not None and kind in IMAGES + TEXTS and member.isreg():
            yield path, kind, member


def read_samples(
    urls: str | list[str], stats: SampleStats, *, allow_pipe: bool = False, max_pixels: int = MAX_PIXELS
) -> Iterator[Sample]:
    """Every usable sample of some shards, decoded, in order; the others are counted in `stats`.

    Raises UserError where too many are bad.
    """
    for raw in raw_samples(shard_urls(urls, allow_pipe=allow_pipe), stats):
        try:
            sample = decode(raw, max_pixels)
        except BadSample as bad:
            stats.add(bad.reason, key=raw.key, shard=raw.url, detail=bad.detail)
        else:
            stats.good()
            yield sample
    stats.check()


def raw_samples(urls: Iterable[str], stats: SampleStats) -> Iterator[Raw]:
    """The undecoded samples of shards. Of a tar that ends too early those behind the cut are counted as bad."""
    for url in urls:
        try:
            yield from (raw for _, raw in samples(url))
        except TAR_ERRORS as error:
            stats.add(CUT, key=stem(url), shard=url, detail=str(error), count=lost(error))
