"""What tells one state of a shard from another without opening it.

How many samples each shard of a list has: counted once, kept in a file, counted anew where a shard has changed.
"""

import errno
import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.core.leases import Leases, share
from open_kandinsky.core.secrets import told_apart
from open_kandinsky.core.suggest import lookup
from open_kandinsky.data.tar.opening import REMOTE, TIMEOUT, asked, filesystem, open_url, patiently
from open_kandinsky.data.tar.reader import SampleCount, count

# the first of these that a file system tells; each has its own
VERSIONS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")


class Stamp(NamedTuple):
    """Bytes, and what the store calls the file's version; None where it does not say."""

    size: int | None
    version: str | None


UNKNOWN = Stamp(None, None)


def stamps(urls: list[str]) -> list[Stamp]:
    """Of each address: one listing a folder. Commands and web servers have none to give. Raises OSError."""
    folders: dict[str, list[str]] = defaultdict(list)
    for url in urls:
        folders[folder_of(url)].append(url)
    found = {url: stamp for folder, held in folders.items() for url, stamp in folder_stamps(folder, held).items()}
    return [found[url] for url in urls]


def folder_of(url: str) -> str:
    """The address without the file's name."""
    return url.rpartition("/")[0]


def folder_stamps(folder: str, urls: list[str]) -> dict[str, Stamp]:
    """Of the files of one folder."""
    if urls[0].startswith(("pipe:", "http://", "https://")):
        return dict.fromkeys(urls, UNKNOWN)
    if REMOTE.match(urls[0]):
        return listed_stamps(folder, urls)
    return {url: Stamp((found := os.stat(url)).st_size, str(found.st_mtime_ns)) for url in urls}


def listed_stamps(folder: str, urls: list[str]) -> dict[str, Stamp]:
    """From a listing; what is not in it is unknown, and is missed when it is opened."""
    system, path = filesystem(f"{folder}/")
    listing = patiently(lambda: asked(system, "ls", path, detail=True, timeout=TIMEOUT * 10), folder)
    found = {info["name"].rpartition("/")[2]: stamp_of(info) for info in listing}
    return {url: found.get(url.rpartition("/")[2], UNKNOWN) for url in urls}


def stamp_of(info: dict[str, Any]) -> Stamp:
    """From what a file system says of a file."""
    version = next((info[name] for name in VERSIONS if info.get(name)), None)
    return Stamp(info.get("size"), None if version is None else str(version))


log = logging.getLogger(__name__)

VERSION = 2  # of what counts as a sample
SAVED_EVERY = 1000  # shards: what was counted is not lost with a process that is stopped
NAMED = 5


@dataclass(frozen=True)
class ShardIndex:
    """A list of shards, how many samples each has, and what is wrong with some."""

    urls: list[str]
    counts: list[int]
    problems: dict[str, str] = field(default_factory=dict)

    @cached_property
    def identity(self) -> str:
        """The same for the same names and counts in the same order, wherever the shards lie."""
        told = hashlib.sha256()
        for url, rows in zip(self.urls, self.counts, strict=True):
            told.update(f"{url.rpartition('/')[2]}\t{rows}\n".encode())
        return told.hexdigest()


class Indexer:
    """Makes the index of a list of shards; what was counted before, by whatever process, is not counted again.

    `folder`: where the counts are kept, one file for each folder of shards; `count`: what counts a shard. One of the
    processes that see `folder` counts, the others wait for it. Raises ValueError for a shard that is not there, and
    OSError for one that cannot be counted.
    """

    def __init__(self, *, folder: str, threads: int, count: Callable[[str], SampleCount]) -> None:
        self.folder, self.threads, self.count = Path(folder).expanduser(), threads, count

    def __call__(self, urls: list[str]) -> ShardIndex:
        units = [FolderCounts(self.file(name), held, self.count, self.threads) for name, held in by_folder(urls)]
        share(units, Leases(self.folder), seen=lambda: None, pause=2.0)
        entries = {url: entry for unit in units for url, entry in unit.entries.items()}
        found = {url: entries[told_apart(url)] for url in urls}
        problems = {url: found[url][3] for url in urls if found[url][3] is not None}
        tell_problems(problems)
        return ShardIndex(list(urls), [found[url][0] for url in urls], problems)

    def file(self, shards: str) -> Path:
        """Counts of another way of counting are another file's."""
        way = getattr(self.count, "func", self.count).__qualname__
        name = hashlib.sha256(f"{VERSION}\n{way}\n{shards}".encode()).hexdigest()[:20]
        return self.folder / f"{name}.json"


def by_folder(urls: list[str]) -> list[tuple[str, dict[str, Stamp]]]:
    """The shards of each folder, with their stamps."""
    folders: dict[str, dict[str, Stamp]] = defaultdict(dict)
    for url, stamp in zip(urls, stamps(urls), strict=True):
        folders[folder_of(url)][url] = stamp
    return list(folders.items())


def tell_problems(problems: dict[str, str]) -> None:
    """By name: what comes after a break is no sample of the set."""
    if problems:
        first = "".join(f"\n  {url}: {problem}" for url, problem in list(problems.items())[:NAMED])
        log.warning(f"{len(problems)} shard(s) are damaged, and have only the samples that can be read:{first}")


class FolderCounts:
    """The counts of one folder's shards, in `path`: a unit of work for leases. `shards`: address -> present stamp."""

    def __init__(self, path: Path, shards: dict[str, Stamp], count: Callable[[str], SampleCount], threads: int) -> None:
        self.path, self.shards, self.count, self.threads = path, shards, count, threads
        self.entries: dict[str, list[Any]] = {}  # address without passwords -> count, size, version, problem

    @property
    def name(self) -> str:
        return self.path.stem

    def left(self) -> list[str]:
        """Those that were never counted, or have changed since."""
        known = self.entries
        kept = {url: known.get(told_apart(url)) for url in self.shards}
        return [url for url, stamp in self.shards.items() if (was := kept[url]) is None or tuple(was[1:3]) != stamp]

    def done(self) -> bool:
        self.entries = json.loads(self.path.read_text()) if self.path.is_file() else {}
        return not self.left()

    def do(self) -> None:
        """Counts what is left, in threads. Raises ValueError or OSError where some could not, the others kept."""
        entries, left = self.entries, self.left()
        if changed := [url for url in left if told_apart(url) in entries]:
            log.warning(f"{len(changed)} shard(s) have changed and are counted again: {', '.join(changed[:NAMED])}")
        failed: dict[str, OSError] = {}
        for done, (url, found) in enumerate(self.counted(left), start=1):
            if isinstance(found, OSError):
                failed[url] = found
            else:
                entries[told_apart(url)] = [found.count, *self.shards[url], found.problem]
            if done % SAVED_EVERY == 0 or done == len(left):
                files.write(self.path, json.dumps(entries))
        refuse_failed(failed)

    def counted(self, urls: list[str]) -> Iterator[tuple[str, SampleCount | OSError]]:
        with ThreadPoolExecutor(self.threads) as pool:
            yield from zip(urls, tqdm(pool.map(self.attempt, urls), "counting", len(urls), unit="shard"), strict=True)

    def attempt(self, url: str) -> SampleCount | OSError:
        try:
            return self.count(url)
        except OSError as error:
            return error


def refuse_failed(failed: dict[str, OSError]) -> None:
    """Raises for shards that could not be counted, the missing ones first."""
    missing = [url for url, error in failed.items() if isinstance(error, FileNotFoundError)]
    if missing:
        raise UserError(f"{len(missing)} shard(s) are not there: {', '.join(missing[:NAMED])}; correct the list")
    if failed:
        url, error = next(iter(failed.items()))
        told = f"{error.strerror or error}; {len(failed)} shard(s) could not be counted: run it again"
        raise OSError(error.errno or errno.EIO, told, url) from error


def count_stats(url: str) -> SampleCount:
    """What img2dataset wrote beside the shard, NNNNN_stats.json, where it did: nothing of the shard is read.

    Its `successes` are counted before a sample is written, so a tar may have fewer samples (which are tallied when they
    are missed); one that somebody added to later has more, and they are not seen.
    """
    said = stated(url)
    return count(url) if said is None else SampleCount(said, None)


def stated(url: str) -> int | None:
    """The samples of a shard as img2dataset counted them; None where it left no such file. OSError as `open_url`."""
    if url.startswith("pipe:"):
        return None
    try:
        with open_url(f"{url.removesuffix('.tar')}_stats.json") as file:
            return int(json.loads(file.read(1 << 20))["successes"])
    except (FileNotFoundError, PermissionError, ValueError, KeyError, TypeError):  # S3 may forbid what is not there
        return None


COUNTERS = {"headers": count, "stats": count_stats}


def build_indexer(*, folder: str, threads: int, count_by: str) -> Indexer:
    """An indexer that counts by `headers` (of a shard's members) or by `stats` (img2dataset's files beside shards)."""
    return Indexer(folder=folder, threads=threads, count=lookup("data.index.count_by", count_by, COUNTERS))
