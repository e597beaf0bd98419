"""A tar's members one after another, by their headers alone. What a stranger's makes this machine read is bounded.

The end is two blocks of zeros and the padding after them. tarfile takes any block of zeros for it, and any garbled
header past the first, and is silent about what comes after.
"""

import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from tarfile import ReadError
from typing import IO, Any, cast

from open_kandinsky.data.tars.opening import open_url

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
