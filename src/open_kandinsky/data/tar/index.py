"""How many samples each shard of a list has: counted once, kept in a file, and counted again where a shard has changed.

A shard's `Stamp`, its size and its version in the store, tells without opening it whether it has changed. Counts of one
folder are one file, which processes share: one counts, the others wait.
"""

import errno
import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable
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
from open_kandinsky.data.folder import FOLDER, version_of
from open_kandinsky.data.tar.opening import REMOTE, TIMEOUT, filesystem, open_url, request, retry
from open_kandinsky.data.tar.reader import SampleCount, count

log = logging.getLogger(__name__)

VERSION = 2  # of the definition of a sample
SAVED_EVERY = 1000  # shards, so that a stopped process loses few counts
NAMED = 5  # shards in a message
# keys of fsspec's file info that change with the file; each file system has others
VERSIONS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")


class Stamp(NamedTuple):
    """A file's size in bytes, and its version as its store calls it; None where the store does not say."""

    size: int | None
    version: str | None


UNKNOWN = Stamp(None, None)


def stamps(urls: list[str]) -> list[Stamp]:
    """Of each address, by one listing a folder. Commands and web servers have none. Raises OSError."""
    folders: dict[str, list[str]] = defaultdict(list)
    for url in urls:
        folders[folder_of(url)].append(url)
    found = {url: stamp for folder, some in folders.items() for url, stamp in folder_stamps(folder, some).items()}
    return [found[url] for url in urls]


def folder_of(url: str) -> str:
    """The address without the file's name."""
    return url.rpartition("/")[0]


def folder_stamps(folder: str, urls: list[str]) -> dict[str, Stamp]:
    """Of the files of one folder; one that is not in its listing is unknown, and missed when it is opened."""
    if urls[0].startswith(("pipe:", "http://", "https://")):
        return dict.fromkeys(urls, UNKNOWN)
    if urls[0].startswith(FOLDER):
        return {url: Stamp(*version_of(url)) for url in urls}
    if not REMOTE.match(urls[0]):
        return {url: Stamp((info := os.stat(url)).st_size, str(info.st_mtime_ns)) for url in urls}
    system, path = filesystem(f"{folder}/")
    listing = retry(lambda: request(system, "ls", path, detail=True, timeout=TIMEOUT * 10), folder)
    listed = {info["name"].rpartition("/")[2]: stamp_of(info) for info in listing}
    return {url: listed.get(url.rpartition("/")[2], UNKNOWN) for url in urls}


def stamp_of(info: dict[str, Any]) -> Stamp:
    """From fsspec's info on a file."""
    version = next((info[name] for name in VERSIONS if info.get(name)), None)
    return Stamp(info.get("size"), None if version is None else str(version))


@dataclass(frozen=True)
class ShardIndex:
    """A list of shards, how many samples each has, and the defects of damaged ones."""

    urls: list[str]
    counts: list[int]
    problems: dict[str, str] = field(default_factory=dict)

    @cached_property
    def identity(self) -> str:
        """A hash of the names and counts in their order, whatever folders the shards lie in."""
        lines = (f"{url.rpartition('/')[2]}\t{n}\n" for url, n in zip(self.urls, self.counts, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


class Indexer:
    """Makes the index of a list of shards; shards that any process has counted before are not counted again.

    `folder`: where the counts are kept, one file for each folder of shards; `count`: counts a shard. One of the
    processes that see `folder` counts, the others wait for it. Raises UserError for a missing shard, and OSError for
    one that cannot be counted.
    """

    def __init__(self, *, folder: str, threads: int, count: Callable[[str], SampleCount]) -> None:
        self.folder, self.threads, self.count = Path(folder).expanduser(), threads, count

    def __call__(self, urls: list[str]) -> ShardIndex:
        folders: dict[str, dict[str, Stamp]] = defaultdict(dict)
        for url, stamp in zip(urls, stamps(urls), strict=True):
            folders[folder_of(url)][url] = stamp
        units = [FolderCounts(self.file(name), shards, self.count, self.threads) for name, shards in folders.items()]
        share(units, Leases(self.folder), seen=lambda: None, pause=2.0)
        entries = {url: entry for unit in units for url, entry in unit.entries.items()}
        found = {url: entries[told_apart(url)] for url in urls}
        problems = {url: found[url][3] for url in urls if found[url][3] is not None}
        if problems:
            first = "".join(f"\n  {url}: {problem}" for url, problem in list(problems.items())[:NAMED])
            log.warning(f"{len(problems)} shard(s) are damaged, and have only the samples that can be read:{first}")
        return ShardIndex(list(urls), [found[url][0] for url in urls], problems)

    def file(self, shards: str) -> Path:
        """Of one folder of shards; another function that counts has another file."""
        way = getattr(self.count, "func", self.count).__qualname__
        name = hashlib.sha256(f"{VERSION}\n{way}\n{shards}".encode()).hexdigest()[:20]
        return self.folder / f"{name}.json"


class FolderCounts:
    """The counts of one folder's shards, in the file `path`: a unit of shared work. `shards`: address -> stamp."""

    def __init__(self, path: Path, shards: dict[str, Stamp], count: Callable[[str], SampleCount], threads: int) -> None:
        self.path, self.shards, self.count, self.threads = path, shards, count, threads
        self.entries: dict[str, list[Any]] = {}  # address without passwords -> count, size, version, problem

    @property
    def name(self) -> str:
        return self.path.stem

    def uncounted(self) -> list[str]:
        """Shards that were never counted, or have changed since."""
        known = {url: self.entries.get(told_apart(url)) for url in self.shards}
        return [url for url, stamp in self.shards.items() if (was := known[url]) is None or tuple(was[1:3]) != stamp]

    def done(self) -> bool:
        self.entries = json.loads(self.path.read_text()) if self.path.is_file() else {}
        return not self.uncounted()

    def do(self) -> None:
        """Counts in threads. Raises UserError or OSError where shards could not be counted, and keeps the others."""
        entries, uncounted = self.entries, self.uncounted()
        if changed := [url for url in uncounted if told_apart(url) in entries]:
            log.warning(f"{len(changed)} shard(s) have changed and are counted again: {', '.join(changed[:NAMED])}")
        failed: dict[str, OSError] = {}
        with ThreadPoolExecutor(self.threads) as pool:
            results = tqdm(pool.map(self.attempt, uncounted), "counting", len(uncounted), unit="shard")
            for done, (url, found) in enumerate(zip(uncounted, results, strict=True), start=1):
                if isinstance(found, OSError):
                    failed[url] = found
                else:
                    entries[told_apart(url)] = [found.count, *self.shards[url], found.problem]
                if done % SAVED_EVERY == 0 or done == len(uncounted):
                    files.write(self.path, json.dumps(entries))
        refuse_failed(failed)

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
        message = f"{error.strerror or error}; {len(failed)} shard(s) could not be counted: run it again"
        raise OSError(error.errno or errno.EIO, message, url) from error


def count_stats(url: str) -> SampleCount:
    """By img2dataset's NNNNN_stats.json beside the shard, where it is there: then nothing of the shard is read.

    img2dataset counts `successes` before it writes a sample, so a tar may have fewer samples (counted as bad when they
    are missed); a tar that was added to later has more, which are not seen.
    """
    successes = img2dataset_count(url)
    return count(url) if successes is None else SampleCount(successes, None)


def img2dataset_count(url: str) -> int | None:
    """The samples of a shard as img2dataset counted them; None where there is no such file. OSError as `open_url`."""
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
