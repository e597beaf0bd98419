"""The data module of `data=cached`: batches of precomputed embeddings and latents."""

import hashlib
import json
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.cache.folder import CacheShards, PrepareCached, read_manifest, read_null, read_statistics
from open_kandinsky.data.cache.shard import Fields, fields_of, refuse_other_sizes
from open_kandinsky.data.cache.table import CachedTable, CaptionPerEpoch, Choose, first_caption, read_rows
from open_kandinsky.data.memory import FixedOrder, MemoryLoader, ShuffledOrder
from open_kandinsky.data.stream.loader import ResumableData, Streaming, StreamLoader, StreamSource


class CachedData(ResumableData):
    """Batches (`EmbeddingBatch`, `LatentBatch`) of a precomputed folder, held in memory or streamed.

    `fields`: of a batch; `sizes`: field -> the key of `dims` that has the width of its vectors, or the channels of its
    latents; `padding`: whether the stage reads the text states of padding, as a decoder does, or masks them, as a prior
    does; `limit` (in memory only): the number of training examples (None: all). Of several captions one is drawn each
    epoch. Validation is in memory. Raises UserError for a folder that is missing, unfinished, damaged, another
    version's, lacks a field or was made for other sizes, and for fewer examples than one batch.
    """

    def __init__(
        self,
        *,
        path: str,
        val_path: str | None,
        fields: list[str],
        dims: dict[str, Any],
        sizes: dict[str, str],
        padding: bool,
        batch_size: int,
        limit: int | None,
        in_memory: bool,
        workers: int,
        shuffle_buffer: int,
        seed: int,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size={batch_size}: at least 1")
        if limit is not None and not in_memory:
            raise UserError(f"data.limit={limit} needs data.in_memory=true: a stream has all examples in its order")
        self.path, self.val_path, self.fields, self.padding = path, val_path, list(fields), padding
        self.dims, self.sizes = dict(dims), dict(sizes)
        self.batch_size, self.limit, self.seed = batch_size, limit, seed
        self.in_memory, self.workers, self.shuffle_buffer = in_memory, workers, shuffle_buffer

    def setup(self, stage: str) -> None:
        """Checks the folders before the stage takes statistics from them."""
        for folder in filter(None, (self.path, self.val_path)):
            self.open_folder(folder)

    @cached_property
    def table(self) -> CachedTable:
        return self.read(self.path, self.limit, CaptionPerEpoch(self.seed))

    @cached_property
    def val_table(self) -> CachedTable:
        assert self.val_path is not None, "val_dataloader is the only caller"
        return self.read(self.val_path, None, first_caption)

    def read(self, folder: str, limit: int | None, choose: Choose) -> CachedTable:
        manifest, fields = self.open_folder(folder)
        return CachedTable(read_rows(folder, manifest, fields, limit), fields, choose)

    def open_folder(self, folder: str) -> tuple[dict[str, Any], Fields]:
        """A folder's manifest and its fields of a batch. Raises UserError where its sizes are not this stage's."""
        manifest = read_manifest(folder)
        fields = fields_of(folder, manifest, self.fields, padding=self.padding)
        sizes = {name: fact for name, fact in self.sizes.items() if name in fields.names}
        refuse_other_sizes(folder, manifest, sizes, self.dims)
        return manifest, fields

    def statistics(self, field: str) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Mean and standard deviation of a field's channels over the whole training folder."""
        return read_statistics(self.path, field)

    @property
    def null(self) -> dict[str, Tensor]:
        """The null condition of each condition among `fields`: a batch of one."""
        return {name: value for name, value in read_null(self.path).items() if name in self.fields}

    @property
    def shards(self) -> list[str]:
        return list(read_manifest(self.path)["shards"])

    def new_train_loader(self) -> MemoryLoader | StreamLoader:
        if self.in_memory:
            order = ShuffledOrder(rows=len(self.table.key), batch_size=self.batch_size, seed=self.seed)
            return self.memory_loader(self.table, order)
        manifest, fields = self.open_folder(self.path)
        shards = CacheShards(folder=self.path, manifest=manifest, fields=fields)
        identity = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        streaming = Streaming(
            prepare=PrepareCached(fields),
            batch_size=self.batch_size,
            workers=self.workers,
            buffer=self.shuffle_buffer,
            seed=self.seed,
            max_bad_share=0.0,
        )
        sources = [StreamSource(shards, identity, weight=1.0)]
        return streaming.loader(sources, saved=self.resume_state, trained=self.batches_trained)

    def val_dataloader(self) -> MemoryLoader | list[Any]:
        if self.val_path is None:
            return []
        order = FixedOrder(rows=len(self.val_table.key), batch_size=self.batch_size)
        return MemoryLoader(table=self.val_table, order=order, trained=int)
