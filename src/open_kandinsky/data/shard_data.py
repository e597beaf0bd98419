"""The data module of `data=shards`: pictures and captions of img2dataset's tar shards, streamed or held in memory."""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image
from torch import Tensor

from open_kandinsky.core.distributed import rank_and_world_size
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.cache.table import read_table
from open_kandinsky.data.folder import FOLDER
from open_kandinsky.data.memory import DistinctOrder, FixedOrder, MemoryLoader, ShuffledOrder, Table
from open_kandinsky.data.pairs import CaptionChooser, Chooser, Pairs, Shapes
from open_kandinsky.data.stream.loader import (
    ResumableData,
    SequentialLoader,
    SequentialReader,
    Streaming,
    StreamLoader,
    StreamSource,
)
from open_kandinsky.data.tar.index import ShardIndex
from open_kandinsky.data.tar.opening import shard_urls
from open_kandinsky.data.tar.reader import TarShards
from open_kandinsky.data.tar.sample import NoSidecars, ParquetSidecars, stem

Urls = str | list[str]


class ShardSource(NamedTuple):
    """A set of shards. `weight`: how often it is drawn compared with other sets; None: by its size."""

    urls: list[str]
    weight: float | None


def parse_sources(
    urls: Urls | None, sources: Sequence[Mapping[str, Any]] | None, *, allow_pipe: bool
) -> list[ShardSource]:
    """From the config: `urls` of one source, or `sources`, each with urls and a weight.

    Raises UserError for both or none of them, for weights that cannot be compared, and for urls that name no shard.
    Warns where two shards have one name, since a sample's key names its shard without the folder.
    """
    if (urls is None) == (not sources):
        raise UserError(f"data.urls={urls!r} and data.sources={sources!r}: give one of them, and null for the other")
    configs = [{"urls": urls, "weight": None}] if sources is None else sources
    parsed = [ShardSource(shard_urls(one["urls"], allow_pipe=allow_pipe), one.get("weight")) for one in configs]
    weights = [source.weight for source in parsed]
    if any(weights) and any(weight is None or weight <= 0 for weight in weights) or 0 in weights:
        raise UserError(f"weights of the sources: {weights}; give each a weight above 0, or none (drawn by size)")
    name, copies = Counter(stem(url) for source in parsed for url in source.urls).most_common(1)[0]
    if copies > 1:
        rank_zero_warn(f"{copies} shards have the name {name!r}: a sample's key in the log does not tell them apart")
    return parsed


class ShardData(ResumableData):
    """Training and validation batches (`ImageBatch`) of shards.

    fields: name of a pixel field -> its transform. filters, captions, buckets: which samples are wanted, with which of
    their captions, in which shapes. background: the colour behind transparent pictures. index: how many samples each
    shard has. parquet_columns: of img2dataset's side files, which become facts of each sample; None: they are not read.
    sources: in the place of `urls`, several sets with weights. shuffle_buffer: undecoded samples that each worker holds
    of each source. in_memory: every sample is read once and kept, in every process: for sets that fit.
    distinct_captions (in memory only): no caption twice in a batch, and samples that share a json `group` together.

    A resumed run continues at the batch where it stopped; with other processes or workers the rest of the epoch is
    divided anew. Raises UserError for urls that name no shard, for more bad samples than `max_bad_share`, where there
    are too few samples for one batch, and where a checkpoint is of other data.
    """

    def __init__(
        self,
        *,
        urls: Urls | None,
        sources: Sequence[Mapping[str, Any]] | None,
        val_urls: Urls | None,
        fields: dict[str, Callable[[Image.Image], Tensor]],
        filters: Chooser,
        captions: CaptionChooser,
        buckets: Shapes,
        background: str,
        index: Callable[[list[str]], ShardIndex],
        parquet_columns: Sequence[str] | None,
        batch_size: int,
        workers: int,
        shuffle_buffer: int,
        in_memory: bool,
        distinct_captions: bool,
        max_bad_share: float,
        max_member_mb: int,
        seed: int,
        allow_pipe: bool,
    ) -> None:
        super().__init__()
        self.sources = parse_sources(urls, sources, allow_pipe=allow_pipe)
        self.val_shards = [] if val_urls is None else shard_urls(val_urls, allow_pipe=allow_pipe)
        self.prepare = Pairs(fields=fields, filters=filters, captions=captions, buckets=buckets, background=background)
        self.index, self.batch_size, self.workers = index, batch_size, workers
        self.sidecars = NoSidecars() if parquet_columns is None else ParquetSidecars(columns=parquet_columns)
        self.seed, self.max_bad_share, self.max_member_mb = seed, max_bad_share, max_member_mb
        self.in_memory, self.distinct_captions = in_memory, distinct_captions
        self.streaming = Streaming(
            prepare=self.prepare,
            batch_size=batch_size,
            workers=workers,
            buffer=shuffle_buffer,
            seed=seed,
            max_bad_share=max_bad_share,
        )
        if distinct_captions and not in_memory:
            raise UserError("distinct_captions=true needs in_memory=true: a stream does not know what is still to come")
        if in_memory and len(self.sources) > 1:
            raise UserError("in_memory=true holds one source: give data.urls, or stream with in_memory=false")

    @cached_property
    def table(self) -> tuple[Table, list[str | None]]:
        """The training set in memory, and the group of each row."""
        return self.read_table(self.sources[0].urls)

    @cached_property
    def val_table(self) -> Table:
        return self.read_table(self.val_shards)[0]

    def read_table(self, urls: list[str]) -> tuple[Table, list[str | None]]:
        share = self.max_bad_share
        return read_table(self.tars(urls), self.prepare, workers=self.workers, max_bad_share=share, seed=self.seed)

    def tars(self, urls: list[str]) -> TarShards:
        return TarShards(self.index(urls), self.sidecars, largest=self.max_member_mb)

    @property
    def shards(self) -> list[str]:
        """The addresses of the training set."""
        return [url for source in self.sources for url in source.urls]

    def counts(self) -> dict[str, int]:
        """How many training samples this process has read, skipped and filtered out; empty for a set in memory."""
        return self.train_loader.stats.counts() if isinstance(self.train_loader, StreamLoader) else {}

    def new_train_loader(self) -> MemoryLoader | StreamLoader:
        if self.in_memory:
            return self.memory_loader(self.table[0], self.order())
        sources = []
        for source in self.sources:
            index = self.index(source.urls)
            weight = sum(index.counts) if source.weight is None else source.weight
            shards = TarShards(index, self.sidecars, largest=self.max_member_mb)
            sources.append(StreamSource(shards, index.identity, float(weight)))
        return self.streaming.loader(sources, saved=self.resume_state, trained=self.batches_trained)

    def order(self) -> ShuffledOrder | DistinctOrder:
        """Of the training set in memory."""
        table, groups = self.table
        if not self.distinct_captions:
            return ShuffledOrder(rows=len(table.key), batch_size=self.batch_size, seed=self.seed)
        return DistinctOrder(captions=table.caption, groups=groups, batch_size=self.batch_size, seed=self.seed)

    def val_dataloader(self) -> MemoryLoader | SequentialLoader | list[Any]:
        if not self.val_shards:
            return []
        if self.in_memory:
            order = FixedOrder(rows=len(self.val_table.key), batch_size=self.batch_size)
            return MemoryLoader(table=self.val_table, order=order, trained=int)
        shards, (rank, processes) = self.tars(self.val_shards), rank_and_world_size()
        reader = SequentialReader(
            shards=shards,
            prepare=self.prepare,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            processes=processes,
        )
        workers = min(self.workers, sum(shards.counts))
        return SequentialLoader(reader, workers=workers, max_bad_share=self.max_bad_share)


def folder_data(
    *, path: str, val_path: str | None, urls: Any, sources: Any, val_urls: Any, **settings: Any
) -> ShardData:
    """The batches of a folder of pictures with captions (data/folder.py), with all settings of ShardData.

    val_path: another such folder, for validation. UserError where shards are named besides.
    """
    if (named := {"urls": urls, "sources": sources, "val_urls": val_urls}) != dict.fromkeys(named):
        given = ", ".join(f"data.{name}={value}" for name, value in named.items() if value is not None)
        null = " ".join(f"data.{name}=null" for name, value in named.items() if value is not None)
        raise UserError(f"data=folder reads data.path, and not {given}; where an experiment names them: {null}")
    val_urls_of = None if val_path is None else f"{FOLDER}{val_path}"
    return ShardData(urls=f"{FOLDER}{path}", sources=None, val_urls=val_urls_of, **settings)


# What a config may give it, so that a mistyped key is found.
folder_data.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
    [
        *(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ("path", "val_path")),
        *(p for name, p in inspect.signature(ShardData).parameters.items()),
    ]
)
