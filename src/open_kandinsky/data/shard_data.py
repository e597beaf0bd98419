"""Where training samples come from: one or several sets of shards, and how often each is drawn.

Image and caption pairs from img2dataset tar shards, streamed or held in memory.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

from lightning import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image
from torch import Tensor

from open_kandinsky.core.distributed import rank_and_world_size
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.cache.table import read_table
from open_kandinsky.data.memory import MemoryLoader, Table, batches_trained
from open_kandinsky.data.order import DistinctOrder, FixedOrder, ShuffledOrder
from open_kandinsky.data.pairs import CaptionChooser, Chooser, Pairs, Shapes
from open_kandinsky.data.stream.loader import SequentialLoader, SequentialReader, Streaming, StreamLoader, StreamSource
from open_kandinsky.data.tar.index import ShardIndex
from open_kandinsky.data.tar.opening import shard_urls
from open_kandinsky.data.tar.reader import TarShards
from open_kandinsky.data.tar.reading import read_samples
from open_kandinsky.data.tar.sample import NoSidecars, ParquetSidecars, Sample, stem
from open_kandinsky.data.tar.stats import SampleStats

Urls = str | list[str]


class ShardSource(NamedTuple):
    """A set of shards. `weight`: how often it is drawn, beside those of the others; None: by its size."""

    urls: list[str]
    weight: float | None


def sources_of(
    urls: Urls | None, sources: Sequence[Mapping[str, Any]] | None, *, allow_pipe: bool
) -> list[ShardSource]:
    """What a person writes: `urls` of one source, or `sources`, each with urls and a weight.

    Raises ValueError for both or none of them, for weights that cannot be compared, and for urls that name no shard.
    """
    if (urls is None) == (not sources):
        raise UserError(f"data.urls={urls!r} and data.sources={sources!r}: give one of them, and null for the other")
    given = [{"urls": urls, "weight": None}] if sources is None else sources
    found = [ShardSource(shard_urls(one["urls"], allow_pipe=allow_pipe), one.get("weight")) for one in given]
    weights = [source.weight for source in found]
    told = [weight for weight in weights if weight is not None]
    if len(told) not in (0, len(weights)) or any(weight <= 0 for weight in told):
        raise UserError(f"weights of the sources: {weights}; give each a weight above 0, or none (drawn by size)")
    warn_of_namesakes([url for source in found for url in source.urls])
    return found


def weights_of(sources: Sequence[ShardSource], indexes: Sequence[ShardIndex]) -> list[float]:
    """A number for each source."""
    sizes = [float(sum(index.counts)) for index in indexes]
    return [size if one.weight is None else float(one.weight) for one, size in zip(sources, sizes, strict=True)]


def warn_of_namesakes(urls: list[str]) -> None:
    """A key names a shard without its folder."""
    name, copies = Counter(stem(url) for url in urls).most_common(1)[0]
    if copies > 1:
        rank_zero_warn(f"{copies} shards have the name {name!r}: a sample's key in the log does not tell them apart")


__all__ = ["Sample", "ShardData", "SampleStats", "read_samples", "read_table", "shard_urls"]


class ShardData(LightningDataModule):
    """Training and validation batches (`ImageBatch`) of shards.

    fields: name of a pixel field -> its transform. filters, captions, buckets: which samples are wanted, with which of
    their captions, in which shapes. index: how many samples each shard has. parquet_columns: of the side files of
    img2dataset, which become facts of each sample; None: they are not read.
    sources: in the place of `urls`, several sets with weights. shuffle_buffer: undecoded samples that each worker holds
    of each source. in_memory: every sample is read once and kept, in every process: for sets that fit.
    distinct_captions (in memory only): no caption twice in a batch, and samples that share a json `group` together.

    A run that is resumed goes on at the batch where it stopped; with other processes or workers it shares out what
    remains of the epoch anew. Raises ValueError for urls that name no shard, for more bad samples than
    `max_bad_share`, where there are too few samples for one batch, and where a checkpoint is of other data.
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
        self.sources = sources_of(urls, sources, allow_pipe=allow_pipe)
        self.val_shards = [] if val_urls is None else shard_urls(val_urls, allow_pipe=allow_pipe)
        self.prepare = Pairs(fields=fields, filters=filters, captions=captions, buckets=buckets)
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
        self.check()
        self.train_loader: MemoryLoader | StreamLoader | None = None
        self.resumed: dict[str, Any] = {}

    def check(self) -> None:
        """ValueError where settings do not go together."""
        if self.distinct_captions and not self.in_memory:
            raise UserError("distinct_captions=true needs in_memory=true: a stream does not know what is still to come")
        if self.in_memory and len(self.sources) > 1:
            raise UserError("in_memory=true holds one source: give data.urls, or stream with in_memory=false")

    @cached_property
    def table(self) -> tuple[Table, list[str | None]]:
        """The training set in memory, and the group of each row."""
        return self.read(self.sources[0].urls)

    @cached_property
    def val_table(self) -> Table:
        return self.read(self.val_shards)[0]

    def read(self, urls: list[str]) -> tuple[Table, list[str | None]]:
        return read_table(
            self.tars(urls), self.prepare, workers=self.workers, max_bad_share=self.max_bad_share, seed=self.seed
        )

    @property
    def shards(self) -> list[str]:
        """Of the training set."""
        return [url for source in self.sources for url in source.urls]

    def counts(self) -> dict[str, int]:
        """What this process has read of the training set, and what of that was of no use; empty for a set in memory."""
        return self.train_loader.counts.so_far() if isinstance(self.train_loader, StreamLoader) else {}

    def tars(self, urls: list[str]) -> TarShards:
        return TarShards(self.index(urls), self.sidecars, largest=self.max_member_mb)

    def state_dict(self) -> dict[str, Any]:
        """The place of all processes. Lightning's own copy is not loaded after a checkpoint at the end of an epoch."""
        return {} if self.train_loader is None else self.train_loader.saved()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resumed = state_dict

    def teardown(self, stage: str) -> None:
        """Workers end with the training, however it ends; its place can still be saved."""
        if self.train_loader is not None:
            self.train_loader.close()

    def on_exception(self, exception: BaseException) -> None:
        self.teardown("fit")

    def train_dataloader(self) -> MemoryLoader | StreamLoader:
        self.train_loader = self.memory_loader() if self.in_memory else self.stream_loader()
        return self.train_loader

    def memory_loader(self) -> MemoryLoader:
        loader = MemoryLoader(table=self.table[0], order=self.order(), trained=partial(batches_trained, self))
        if self.resumed:
            loader.load_state_dict(self.resumed)
        return loader

    def stream_loader(self) -> StreamLoader:
        indexes = [self.index(source.urls) for source in self.sources]
        shards = [TarShards(index, self.sidecars, largest=self.max_member_mb) for index in indexes]
        identities = [index.identity for index in indexes]
        sources = map(StreamSource, shards, identities, weights_of(self.sources, indexes))
        return self.streaming.loader(list(sources), saved=self.resumed, trained=partial(batches_trained, self))

    def val_dataloader(self) -> MemoryLoader | SequentialLoader | list[Any]:
        if not self.val_shards:
            return []
        if not self.in_memory:
            shards = self.tars(self.val_shards)
            once = SequentialReader(shards=shards, prepare=self.prepare, batch_size=self.batch_size, seed=self.seed)
            rank, processes = rank_and_world_size()
            share = self.max_bad_share
            return SequentialLoader(
                once=once, workers=self.workers, max_bad_share=share, process=rank, processes=processes
            )
        order = FixedOrder(rows=len(self.val_table.key), batch_size=self.batch_size)
        return MemoryLoader(table=self.val_table, order=order, trained=int)

    def order(self) -> ShuffledOrder | DistinctOrder:
        table, groups = self.table
        if not self.distinct_captions:
            return ShuffledOrder(rows=len(table.key), batch_size=self.batch_size, seed=self.seed)
        return DistinctOrder(captions=table.caption, groups=groups, batch_size=self.batch_size, seed=self.seed)
