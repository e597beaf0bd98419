"""The samples of a tar by their place in it: counted by headers alone, and read without the bodies in between.

A sample is a run of adjacent members of one key; its position says how many samples come before it.
"""

import lzma
import sys
import tarfile
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import NamedTuple, Protocol, runtime_checkable

from webdataset.tariterators import base_plus_ext

from open_kandinsky.data.tars.archive import Archive, Broken, headers, opened
from open_kandinsky.data.tars.sample import IMAGES, TEXTS, Raw, stem, whole
from open_kandinsky.data.tars.sidecars import Facts
from open_kandinsky.data.tars.tally import Skipped

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

    def __init__(self, index: Index, sidecars: Sidecars, *, largest: int = LARGEST) -> None:
        self.index, self.sidecars, self.largest = index, sidecars, largest

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


def count(url: str) -> Counted:
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
    return Counted(found, problem)


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
