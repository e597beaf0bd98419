"""The work that processes share: a unit for each shard, one for the null conditions, one that finishes the folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from open_kandinsky.caching.ahead import ahead
from open_kandinsky.caching.encoders import Encoders
from open_kandinsky.caching.inputs import Input
from open_kandinsky.caching.prepared import Prepare, Prepared
from open_kandinsky.core.errors import BadSample
from open_kandinsky.data.caches.folder import NULL, finish, finished, write_null
from open_kandinsky.data.caches.rows import Rows, joined
from open_kandinsky.data.caches.shard import read_about, write_shard
from open_kandinsky.data.tars.index import stated
from open_kandinsky.data.tars.sample import Raw, stem
from open_kandinsky.data.tars.tally import Skipped, restored
from open_kandinsky.data.tars.tar import CUT, FORMAT_ERRORS, GONE, LARGEST, lost, samples
from open_kandinsky.secrets import masked


class Refused(NamedTuple):
    """A sample that cannot be used."""

    key: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Maker:
    """What makes rows of samples. `load` is called once, and only where there is something to make."""

    load: Callable[[], tuple[Encoders, Prepare]]
    batch_size: int
    workers: int
    largest: int = LARGEST  # MB of a member

    @cached_property
    def loaded(self) -> tuple[Encoders, Prepare]:
        return self.load()

    @property
    def long(self) -> int:
        """How many captions were longer than the text encoder reads."""
        return self.loaded[0].text.long.count if "loaded" in vars(self) else 0

    def rows(self, raws: Iterator[Raw], tally: Skipped, shard: str) -> Rows:
        """Of every sample that can be used; `tally` is told of all."""
        encoders, _ = self.loaded
        made = ahead(self.attempt, raws, workers=self.workers, most=2 * self.batch_size)
        usable, parts = self.usable(made, tally, shard), []
        while batch := list(islice(usable, self.batch_size)):
            parts.append(encoders.rows(batch))
        return joined(parts) if parts else Rows({}, [], [])

    def attempt(self, raw: Raw) -> Prepared | Refused:
        try:
            return self.loaded[1](raw)
        except ValueError as error:
            bad = BadSample.from_error(error)
            return Refused(raw.key, bad.reason, bad.detail)

    def usable(self, made: Iterator["Future[Prepared | Refused]"], tally: Skipped, shard: str) -> Iterator[Prepared]:
        for one in (future.result() for future in made):
            if isinstance(one, Refused):
                tally.add(one.reason, key=one.key, shard=shard, detail=one.detail)
            else:
                tally.good()
                yield one


class Judge:
    """Stops the work where too many samples are bad, of all that any process has seen; each shard has its tally."""

    def __init__(self, out: Path, given: Sequence[Input], *, max_bad_share: float) -> None:
        self.paths, self.max_bad_share = [out / f"{one.name}.safetensors" for one in given], max_bad_share
        self.total = self.counted()

    def counted(self) -> Skipped:
        """The tallies of all shards that are there."""
        total = Skipped(max_bad_share=self.max_bad_share)
        for path in self.paths:
            if path.is_file():
                total.merge(restored(read_about(path)["tally"], max_bad_share=self.max_bad_share))
        return total

    def add(self, tally: Skipped) -> None:
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
    judge: Judge

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
        tally, stamp = Skipped(max_bad_share=1.0), self.one.stamp  # judged with all others, not alone
        with self.one.at_hand() as (path, digest):
            rows = self.maker.rows(self.raws(path, tally), tally, self.one.url)
            size, sha256 = digest.result()
        self.judge.add(tally)
        source = {"file": masked(Path(self.one.url).name), "size": size, "sha256": sha256, "version": stamp.version}
        write_shard(self.path, rows, {"recipe": self.recipe, "input": source, "tally": tally.plain()})

    def raws(self, path: str, tally: Skipped) -> Iterator[Raw]:
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
