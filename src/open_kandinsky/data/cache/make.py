"""What a folder holds, held against what it should: outputs that are fresh, stale, missing, or of nothing any more.

The work that processes share: a unit for each shard, one for the null conditions, one that finishes the folder.

Whether a finished cache still is what the online encoders say: of some samples, field by field.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
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
from open_kandinsky.data.tar.index import Stamp, stamps, stated
from open_kandinsky.data.tar.reader import CUT, FORMAT_ERRORS, GONE, LARGEST, lost, samples
from open_kandinsky.data.tar.sample import Raw, stem
from open_kandinsky.data.tar.stats import SampleStats, stats_from_plain

NAMED = 20
READERS = 16


class Survey(NamedTuple):
    """By output's name. `about`: what each that is there and wanted was made from; `stale`: why."""

    about: dict[str, dict[str, Any]]
    stale: dict[str, str]
    missing: list[str]
    orphans: list[str]

    def refuse_stale(self) -> None:
        """ValueError that lists them: they are neither mixed with others nor made again over what is there."""
        if self.stale:
            lines = "\n".join(f"  {name}: {why}" for name, why in list(self.stale.items())[:NAMED])
            more = "" if len(self.stale) <= NAMED else f"\n  ... and {len(self.stale) - NAMED} more"
            raise UserError(f"stale shards: delete them, or write to another folder\n{lines}{more}")

    def told_orphans(self) -> str | None:
        """One line, where there are any."""
        if not self.orphans:
            return None
        names = ", ".join(self.orphans[:NAMED]) + (" ..." if len(self.orphans) > NAMED else "")
        return f"{len(self.orphans)} shard(s) whose inputs are not among urls, left out of the manifest: {names}"


def survey(out: Path, inputs: Sequence[Input], recipe: Mapping[str, Any]) -> Survey:
    """Reads the headers of what is there, and of inputs no more than size and version, unless these have changed."""
    there = {path.stem: path for path in shard_files(out)}
    wanted = [one for one in inputs if one.name in there]
    with ThreadPoolExecutor(READERS) as pool:
        about = list(pool.map(read_about, [there[one.name] for one in wanted]))
    found = dict(zip(wanted, zip(about, stamps([one.url for one in wanted]), strict=True), strict=True))
    why = {one.name: stale(one, *held, recipe) for one, held in found.items()}
    names = {one.name for one in inputs}
    return Survey(
        about={one.name: about for one, (about, _) in found.items()},
        stale={name: reason for name, reason in why.items() if reason},
        missing=[one.name for one in inputs if one.name not in there],
        orphans=sorted(set(there) - names),
    )


def stale(one: Input, about: Mapping[str, Any], stamp: Stamp, recipe: Mapping[str, Any]) -> str:
    """Why an output is not what it would be if it were made now; empty where it is."""
    if told := differences(about["recipe"], recipe):
        return f"made with {told}"
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
    """What makes rows of samples. `load` is called once, and only where there is something to make."""

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

    def rows(self, raws: Iterator[Raw], tally: SampleStats, shard: str) -> CacheRows:
        """Of every sample that can be used; `tally` is told of all."""
        encoders, _ = self.loaded
        made = prefetch(self.attempt, raws, workers=self.workers, most=2 * self.batch_size)
        usable, parts = self.usable(made, tally, shard), []
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
        self, made: Iterator["Future[PreparedInputs | Refused]"], tally: SampleStats, shard: str
    ) -> Iterator[PreparedInputs]:
        for one in (future.result() for future in made):
            if isinstance(one, Refused):
                tally.add(one.reason, key=one.key, shard=shard, detail=one.detail)
            else:
                tally.good()
                yield one


class BadSampleLimit:
    """Stops the work where too many samples are bad, of all that any process has seen; each shard has its tally."""

    def __init__(self, out: Path, given: Sequence[Input], *, max_bad_share: float) -> None:
        self.paths, self.max_bad_share = [out / f"{one.name}.safetensors" for one in given], max_bad_share
        self.total = self.counted()

    def counted(self) -> SampleStats:
        """The tallies of all shards that are there."""
        total = SampleStats(max_bad_share=self.max_bad_share)
        for path in self.paths:
            if path.is_file():
                total.merge(stats_from_plain(read_about(path)["tally"], max_bad_share=self.max_bad_share))
        return total

    def add(self, tally: SampleStats) -> None:
        """Raises ValueError, with the report. Others' shards are counted anew before that."""
        self.total.merge(tally)
        try:
            self.total.check()
        except ValueError:
            self.total = self.counted()
            self.total.merge(tally)
            self.total.check()


@dataclass(frozen=True)
class ShardUnit:
    """One tar to one shard."""

    one: Input
    out: Path
    recipe: Mapping[str, Any]
    maker: Maker
    judge: BadSampleLimit

    @property
    def name(self) -> str:
        return self.one.name

    @property
    def path(self) -> Path:
        return self.out / f"{self.name}.safetensors"

    def done(self) -> bool:
        return self.path.is_file()

    def do(self) -> None:
        """A tar without a usable sample makes an empty shard, so that it is not read again."""
        tally, stamp = SampleStats(max_bad_share=1.0), self.one.stamp  # judged with all others, not alone
        with self.one.at_hand() as (path, digest):
            rows = self.maker.rows(self.raws(path, tally), tally, self.one.url)
            size, sha256 = digest.result()
        self.judge.add(tally)
        source = {"file": masked(Path(self.one.url).name), "size": size, "sha256": sha256, "version": stamp.version}
        write_shard(self.path, rows, {"recipe": self.recipe, "input": source, "tally": tally.plain()})

    def raws(self, path: str, tally: SampleStats) -> Iterator[Raw]:
        """A tar that ends too early loses what was cut; one that cannot be read for now is no such tar."""
        given, about = 0, {"key": stem(self.one.url), "shard": self.one.url}
        try:
            for _, raw in samples(path, largest=self.maker.largest):
                given += 1
                yield raw
        except FORMAT_ERRORS as error:
            missing = max(lost(error), (stated(self.one.url) or 0) - given)
            tally.add(CUT, **about, detail=str(error), count=missing)
        else:
            if missing := max((stated(self.one.url) or 0) - given, 0):
                tally.add(GONE, **about, detail=f"its _stats.json knows {given + missing}", count=missing)


@dataclass(frozen=True)
class NullUnit:
    """The conditions of nothing."""

    out: Path
    maker: Maker
    name: str = "null"

    def done(self) -> bool:
        return (self.out / NULL).is_file()

    def do(self) -> None:
        write_null(self.out, self.maker.loaded[0].null())


@dataclass(frozen=True)
class FinishUnit:
    """Statistics and manifest of these shards."""

    out: Path
    facts: Mapping[str, Any]
    shards: Sequence[Path]
    name: str = "manifest"

    def done(self) -> bool:
        return finished(self.out, self.facts, self.shards)

    def do(self) -> None:
        finish(self.out, self.facts, self.shards)


# Of a field's largest value: what another batch size moves, and what half precision rounds away.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
HALF = 2**-10


def problems(found: Survey) -> list[str]:
    """A line for each output that is stale, missing, or has no input any more."""
    told = [f"stale: {name}: {why}" for name, why in found.stale.items()]
    told += [f"missing: {name}" for name in found.missing]
    return told + [f"orphan: {name}: its input is not among urls" for name in found.orphans]


def chosen(counts: Mapping[str, int], n: int) -> dict[str, list[int]]:
    """`n` rows spread evenly over shards of these counts: shard -> rows."""
    total = sum(counts.values())
    wanted = [at * total // min(n, total) for at in range(min(n, total))]
    starts = offsets(counts)
    rows = {name: [at - start for at in wanted if start <= at < start + counts[name]] for name, start in starts}
    return {name: those for name, those in rows.items() if those}


def offsets(counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Each shard, and how many rows the shards before it have."""
    start = 0
    for name, count in counts.items():
        yield name, start
        start += count


def differing(path: Path, one: Input, rows: Sequence[int], maker: Maker, precision: str) -> Iterator[str]:
    """A line for each field of some rows of a shard that is not as its tar's samples are encoded now."""
    held = read_shard(path)
    wanted = {held.key[row]: row for row in rows}
    for key, now in encoded(one, wanted, maker):
        row = wanted.pop(key)
        for name, told in compared(some_rows(held, row, row + 1), now, precision):
            yield f"{path.name}: {key}: {name} {told}"
    yield from (f"{path.name}: {key}: no such usable sample in {one.url}" for key in wanted)


def encoded(one: Input, keys: Mapping[str, int], maker: Maker) -> Iterator[tuple[str, CacheRows]]:
    """Those samples of a tar, each alone."""
    encoders, prepare = maker.loaded
    with one.at_hand() as (path, _):
        wanted = (raw for _, raw in samples(path, largest=maker.largest) if raw.key in keys)
        for raw in wanted:
            yield raw.key, encoders.rows([prepare(raw)])


def compared(held: CacheRows, now: CacheRows, precision: str) -> Iterator[tuple[str, str]]:
    """What differs: captions and counts at all, tensors by more than the tolerance."""
    if held.caption != now.caption:
        yield "caption", f"is {held.caption}, and was {now.caption}"
        return
    for name, column in now.columns.items():
        if (gap := distance(held.columns[name], column)) > allowed(column, precision):
            yield name, f"is off by {gap:.2g} of its largest value"


def distance(held: Tensor, now: Tensor) -> float:
    """The largest difference over the largest value; infinite where shapes or integers differ at all."""
    if held.shape != now.shape:
        return float("inf")
    if not now.is_floating_point():
        return 0.0 if torch.equal(held, now) else float("inf")
    gap, largest = ((x.double()).abs().max().item() for x in (held - now, now))
    return gap / largest if gap else 0.0


def allowed(column: Tensor, precision: str) -> float:
    return TOLERANCE[precision] + (HALF if column.dtype == torch.float16 else 0.0)
