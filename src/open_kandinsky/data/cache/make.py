"""Makes a cache from tars, by any number of processes, and compares a finished cache with its tars and encoders.

`survey` finds shards of a cache that are stale, missing, or whose tar is gone. `ShardUnit`, `NullUnit` and `FinishUnit`
are the units of work that processes share. `differing` encodes some samples again and compares them field by field.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from open_kandinsky.core.errors import BadSample, UserError
from open_kandinsky.core.secrets import masked
from open_kandinsky.data.cache.encode import Encoders, Input, PreparedInputs, PrepareInputs, prefetch
from open_kandinsky.data.cache.folder import NULL, differences, finish, finished, shard_files, write_null
from open_kandinsky.data.cache.rows import CacheRows, concat_rows, some_rows
from open_kandinsky.data.cache.shard import read_about, read_shard, write_shard
from open_kandinsky.data.tar.index import Stamp, img2dataset_count, stamps
from open_kandinsky.data.tar.reader import CUT, FORMAT_ERRORS, GONE, LARGEST, lost, samples
from open_kandinsky.data.tar.sample import Raw, stem
from open_kandinsky.data.tar.stats import SampleStats, stats_from_plain

NAMED = 20
READERS = 16


class Survey(NamedTuple):
    """Shards of a cache by name. `about`: what each present one was made from; `stale`: name -> reason."""

    about: dict[str, dict[str, Any]]
    stale: dict[str, str]
    missing: list[str]
    orphans: list[str]

    def refuse_stale(self) -> None:
        """Raises UserError that lists stale shards: they are neither used nor overwritten."""
        if self.stale:
            lines = "\n".join(f"  {name}: {why}" for name, why in list(self.stale.items())[:NAMED])
            more = "" if len(self.stale) <= NAMED else f"\n  ... and {len(self.stale) - NAMED} more"
            raise UserError(f"stale shards: delete them, or write to another folder\n{lines}{more}")

    def orphans_line(self) -> str | None:
        """One line on shards without a tar, where there are any."""
        if not self.orphans:
            return None
        names = ", ".join(self.orphans[:NAMED]) + (" ..." if len(self.orphans) > NAMED else "")
        return f"{len(self.orphans)} shard(s) whose inputs are not among urls, left out of the manifest: {names}"


def survey(out: Path, inputs: Sequence[Input], recipe: Mapping[str, Any]) -> Survey:
    """Reads headers of shards, and of tars no more than size and version, unless these have changed."""
    files = {path.stem: path for path in shard_files(out)}
    present = [one for one in inputs if one.name in files]
    with ThreadPoolExecutor(READERS) as pool:
        about = list(pool.map(read_about, [files[one.name] for one in present]))
    found = zip(present, about, stamps([one.url for one in present]), strict=True)
    reasons = {one.name: stale(one, facts, stamp, recipe) for one, facts, stamp in found}
    return Survey(
        about={one.name: facts for one, facts in zip(present, about, strict=True)},
        stale={name: reason for name, reason in reasons.items() if reason},
        missing=[one.name for one in inputs if one.name not in files],
        orphans=sorted(set(files) - {one.name for one in inputs}),
    )


def stale(one: Input, about: Mapping[str, Any], stamp: Stamp, recipe: Mapping[str, Any]) -> str:
    """Why a shard is not what would be made now; empty where it is."""
    if different := differences(about["recipe"], recipe):
        return f"made with {different}"
    was = about["input"]
    if stamp.size not in (None, was["size"]):
        return f"{one.url} had {was['size']} bytes, and has {stamp.size}"
    if stamp.version in (None, was["version"]):
        return ""
    return "" if one.digest.sha256 == was["sha256"] else f"{one.url} has other bytes than it had"


class Refused(NamedTuple):
    """A sample that cannot be used."""

    key: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Maker:
    """Makes rows of samples. `load` gives the encoders; it is called once, and only where there is work."""

    load: Callable[[], tuple[Encoders, PrepareInputs]]
    batch_size: int
    workers: int
    largest: int = LARGEST  # MB of a member

    @cached_property
    def loaded(self) -> tuple[Encoders, PrepareInputs]:
        return self.load()

    @property
    def long(self) -> int:
        """How many captions were longer than the text encoder reads."""
        return self.loaded[0].text.long.count if "loaded" in vars(self) else 0

    def rows(self, raws: Iterator[Raw], stats: SampleStats, shard: str) -> CacheRows:
        """Of every sample that can be used; all are counted in `stats`."""
        encoders, _ = self.loaded  # before the threads want it
        prepared = prefetch(self.attempt, raws, workers=self.workers, most=2 * self.batch_size)
        usable, parts = self.usable(prepared, stats, shard), []
        while batch := list(islice(usable, self.batch_size)):
            parts.append(encoders.rows(batch))
        return concat_rows(parts) if parts else CacheRows({}, [], [])

    def attempt(self, raw: Raw) -> PreparedInputs | Refused:
        try:
            return self.loaded[1](raw)
        except ValueError as error:
            bad = BadSample.from_error(error)
            return Refused(raw.key, bad.reason, bad.detail)

    def usable(
        self, prepared: Iterator["Future[PreparedInputs | Refused]"], stats: SampleStats, shard: str
    ) -> Iterator[PreparedInputs]:
        for one in (future.result() for future in prepared):
            if isinstance(one, Refused):
                stats.add(one.reason, key=one.key, shard=shard, detail=one.detail)
            else:
                stats.good()
                yield one


class BadSampleLimit:
    """Stops the work where too many of all samples that any process has read are bad.

    Each shard of the cache keeps the statistics of its own samples.
    """

    def __init__(self, out: Path, inputs: Sequence[Input], *, max_bad_share: float) -> None:
        self.paths, self.max_bad_share = [out / f"{one.name}.safetensors" for one in inputs], max_bad_share
        self.total = self.counted()

    def counted(self) -> SampleStats:
        """The statistics of all shards that exist."""
        total = SampleStats(max_bad_share=self.max_bad_share)
        for path in self.paths:
            if path.is_file():
                total.merge(stats_from_plain(read_about(path)["tally"], max_bad_share=self.max_bad_share))
        return total

    def add(self, stats: SampleStats) -> None:
        """Raises UserError, with the report, after counting the shards of other processes again."""
        self.total.merge(stats)
        try:
            self.total.check()
        except UserError:
            self.total = self.counted()
            self.total.merge(stats)
            self.total.check()


@dataclass(frozen=True)
class ShardUnit:
    """Makes one shard of one tar."""

    input: Input
    out: Path
    recipe: Mapping[str, Any]
    maker: Maker
    limit: BadSampleLimit

    @property
    def name(self) -> str:
        return self.input.name

    @property
    def path(self) -> Path:
        return self.out / f"{self.name}.safetensors"

    def done(self) -> bool:
        return self.path.is_file()

    def do(self) -> None:
        """A tar without a usable sample makes an empty shard, so that it is not read again."""
        url, stamp = self.input.url, self.input.stamp
        stats = SampleStats(max_bad_share=1.0)  # judged with all others, not alone
        with self.input.at_hand() as (path, digest):
            rows = self.maker.rows(self.raws(path, stats), stats, url)
            size, sha256 = digest.result()
        self.limit.add(stats)
        source = {"file": masked(Path(url).name), "size": size, "sha256": sha256, "version": stamp.version}
        write_shard(self.path, rows, {"recipe": self.recipe, "input": source, "tally": stats.plain()})

    def raws(self, path: str, stats: SampleStats) -> Iterator[Raw]:
        """The samples of a tar. Those behind a cut are counted as bad; an OSError is no cut, and is raised."""
        url, read = self.input.url, 0
        about = {"key": stem(url), "shard": url}
        try:
            for _, raw in samples(path, largest=self.maker.largest):
                read += 1
                yield raw
        except FORMAT_ERRORS as error:
            missing = max(lost(error), (img2dataset_count(url) or 0) - read)
            stats.add(CUT, **about, detail=str(error), count=missing)
        else:
            if missing := max((img2dataset_count(url) or 0) - read, 0):
                stats.add(GONE, **about, detail=f"its _stats.json knows {read + missing}", count=missing)


@dataclass(frozen=True)
class NullUnit:
    """Writes the null conditions."""

    out: Path
    maker: Maker
    name: str = "null"

    def done(self) -> bool:
        return (self.out / NULL).is_file()

    def do(self) -> None:
        write_null(self.out, self.maker.loaded[0].null())


@dataclass(frozen=True)
class FinishUnit:
    """Writes the statistics and the manifest of some shards."""

    out: Path
    facts: Mapping[str, Any]
    shards: Sequence[Path]
    name: str = "manifest"

    def done(self) -> bool:
        return finished(self.out, self.facts, self.shards)

    def do(self) -> None:
        finish(self.out, self.facts, self.shards)


# Relative to a field's largest value: the effect of another batch size, and of rounding to half precision.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
HALF = 2**-10


def problems(found: Survey) -> list[str]:
    """A line for each output that is stale, missing, or has no input any more."""
    lines = [f"stale: {name}: {why}" for name, why in found.stale.items()]
    lines += [f"missing: {name}" for name in found.missing]
    return lines + [f"orphan: {name}: its input is not among urls" for name in found.orphans]


def chosen(counts: Mapping[str, int], n: int) -> dict[str, list[int]]:
    """`n` rows spread evenly over shards of these counts: shard -> rows."""
    total = sum(counts.values())
    wanted = [at * total // min(n, total) for at in range(min(n, total))]
    starts = zip(counts, accumulate(counts.values(), initial=0), strict=False)
    rows = {name: [at - start for at in wanted if start <= at < start + counts[name]] for name, start in starts}
    return {name: some for name, some in rows.items() if some}


def differing(path: Path, one: Input, rows: Sequence[int], maker: Maker, precision: str) -> Iterator[str]:
    """Encodes some rows of a shard again, each alone; a line for each field that differs."""
    stored, (encoders, prepare) = read_shard(path), maker.loaded
    wanted = {stored.key[row]: row for row in rows}
    with one.at_hand() as (local, _):
        for _, raw in samples(local, largest=maker.largest):
            if raw.key in wanted:
                row = wanted.pop(raw.key)
                now = encoders.rows([prepare(raw)])
                for name, difference in compared(some_rows(stored, row, row + 1), now, precision):
                    yield f"{path.name}: {raw.key}: {name} {difference}"
    yield from (f"{path.name}: {key}: no such usable sample in {one.url}" for key in wanted)


def compared(stored: CacheRows, now: CacheRows, precision: str) -> Iterator[tuple[str, str]]:
    """Fields that differ: captions and integers at all, tensors by more than the tolerance."""
    if stored.caption != now.caption:
        yield "caption", f"is {stored.caption}, and was {now.caption}"
        return
    for name, column in now.columns.items():
        tolerance = TOLERANCE[precision] + (HALF if column.dtype == torch.float16 else 0.0)
        if (gap := distance(stored.columns[name], column)) > tolerance:
            yield name, f"is off by {gap:.2g} of its largest value"


def distance(stored: Tensor, now: Tensor) -> float:
    """The largest difference over the largest value; infinite where shapes or integers differ at all."""
    if stored.shape != now.shape:
        return float("inf")
    if not now.is_floating_point():
        return 0.0 if torch.equal(stored, now) else float("inf")
    gap, largest = ((x.double()).abs().max().item() for x in (stored - now, now))
    return gap / largest if gap else 0.0
