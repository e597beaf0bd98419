"""The data module of `data=webdataset`: batches of a webdataset pipeline (https://github.com/webdataset/webdataset).

For people who have such pipelines. `data=shards` stays the default: it resumes exactly, and reads any fsspec store.

The order and what is opened are webdataset's: shards are divided among processes and workers, each of which shuffles
the samples of its own shards, so the order depends on how many there are. Addresses are opened by webdataset's `gopen`.
A checkpoint says how many passes over the data were begun and nothing more: a resumed run begins the next pass, and
samples that were seen in the stopped pass may come again.

Samples arrive as bytes and are decoded by our own transforms. webdataset's `.decode()` would unpickle members that are
called .pyd, .pickle or .pth, which runs code of whoever wrote the tar; members that are no picture or text are
skipped.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any

from lightning import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset
from webdataset.compat import WebDataset
from webdataset.handlers import warn_and_continue
from webdataset.shardlists import expand_urls, split_by_node, split_by_worker
from webdataset.tariterators import base_plus_ext

from open_kandinsky.core.distributed import world_size
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.memory import Batch
from open_kandinsky.data.pairs import CaptionChooser, Chooser, Pairs, Shapes
from open_kandinsky.data.stream.batches import BucketBatcher
from open_kandinsky.data.stream.loader import SequentialLoader, run_workers
from open_kandinsky.data.stream.plan import SampleRef
from open_kandinsky.data.tar.opening import shard_urls
from open_kandinsky.data.tar.sample import IMAGES, TEXTS, Raw, stem
from open_kandinsky.data.tar.stats import MIN_JUDGED, SampleStats, StreamStats

Pipeline = Callable[[list[str], int | None], Iterable[Mapping[str, Any]]]  # shards, seed -> samples of one pass


def shuffled_samples(urls: list[str], seed: int | None, *, shuffle_buffer: int) -> WebDataset:
    """The undecoded samples of one pass: this worker's shards in random order, its samples through a shuffle buffer.

    `seed` decides the order; None, for validation: in the order of `urls`. A damaged shard causes a warning, and the
    pass goes on with the next one.
    """
    shards = urls if seed is None else random.Random(seed).sample(urls, len(urls))
    dataset: Any = WebDataset(
        shards,
        shardshuffle=False,  # shuffled above, before they are divided: a worker has other shards in each pass
        nodesplitter=split_by_node,
        workersplitter=split_by_worker,
        handler=warn_and_continue,
        select_files=is_picture_or_text,
        empty_check=False,
    )
    return dataset if seed is None else dataset.shuffle(shuffle_buffer, initial=shuffle_buffer, seed=seed)


def is_picture_or_text(name: str) -> bool:
    """By the ending of a member's name."""
    return (base_plus_ext(name)[1] or "").lower() in IMAGES + TEXTS


def raw_sample(sample: Mapping[str, Any]) -> Raw:
    """webdataset's sample as a shard's reader of ours gives it. Raises UserError where something has decoded it."""
    members = {kind: sample[kind] for kind in sample if kind in IMAGES + TEXTS}
    for kind, value in members.items():
        if not isinstance(value, bytes):
            raise UserError(
                f"data.pipeline gives .{kind} as {type(value).__name__}: leave members undecoded, without .decode()"
            )
    url = sample["__url__"]
    return Raw(f"{stem(url)}/{sample['__key__']}", url, members)


class WebDatasetBatches(IterableDataset):
    """One worker's batches of a pass, the last ones short, and then its statistics; or of pass after pass, `endless`.

    Raises UserError where more than `max_bad_share` of the samples cannot be used, and where an endless worker
    has none.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        urls: list[str],
        prepare: Pairs,
        *,
        batch_size: int,
        shuffle: bool,
        first_pass: int,
        endless: bool,
        max_bad_share: float,
        seed: int,
    ) -> None:
        self.pipeline, self.urls, self.prepare, self.batch_size = pipeline, urls, prepare, batch_size
        self.shuffle, self.first_pass, self.endless = shuffle, first_pass, endless
        self.max_bad_share, self.seed = max_bad_share, seed

    def __iter__(self) -> Iterator[Batch | SampleStats]:
        stats = StreamStats()
        batcher = BucketBatcher(prepare=self.prepare, seed=self.seed, stats=stats)
        for number in count(self.first_pass) if self.endless else [self.first_pass]:
            seed = random.Random(f"{self.seed}/{number}").getrandbits(32) if self.shuffle else None
            made = 0
            for sample in self.pipeline(self.urls, seed):
                bad = stats.bad()
                bucket = batcher.add(SampleRef(0, number, 0, 0, raw_sample(sample)))
                for batch in bucket.full_batches(self.batch_size) if bucket else ():
                    made += 1
                    yield batch
                if stats.bad() > bad:
                    self.judge(stats, len(batcher.waiting()))
            if self.endless and not made and not batcher.waiting():
                report = stats.merged(1.0).report()
                raise UserError(f"no sample can be used in {len(self.urls)} shard(s), as {self.urls[0]!r}:\n{report}")
        for bucket in batcher.buckets.values():
            yield from bucket.last_batch()
        yield stats.merged(1.0)

    def judge(self, stats: StreamStats, waiting: int) -> None:
        """Samples that wait for their batch are taken for good."""
        total = stats.merged(self.max_bad_share)
        total.seen += waiting
        if total.seen >= MIN_JUDGED:
            total.check()


class WebDatasetLoader:
    """The batches of this process; `passes` counts how often it was begun.

    `batches`: how many an epoch has, of an endless run; None: every sample once, the last batches short.
    """

    def __init__(self, pass_batches: Callable[..., WebDatasetBatches], *, workers: int, batches: int | None) -> None:
        self.pass_batches, self.workers, self.batches, self.passes = pass_batches, workers, batches, 0

    def __len__(self) -> int:
        if self.batches is None:
            raise TypeError("how many batches there are is known at their end")
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        dataset = self.pass_batches(first_pass=self.passes, endless=self.batches is not None)
        self.passes += 1  # when the first batch is asked for: Lightning makes iterators that it does not use
        if self.batches is None:
            yield from SequentialLoader(dataset, workers=self.workers, max_bad_share=dataset.max_bad_share)
        else:
            yield from islice(run_workers(dataset, self.workers), self.batches)


class WebDatasetData(LightningDataModule):
    """Training and validation batches (`ImageBatch`) of webdataset pipelines.

    urls, val_urls: as in `data=shards`, and with webdataset's braces in `pipe:` commands. pipeline: (shards, seed) ->
    the undecoded samples of one pass, such as any `wds.WebDataset`; it divides the shards among processes and workers.
    fields, filters, captions, buckets: as in `data=shards`. epoch_batches, val_batches: batches of an epoch in each
    process; None: every sample once, in one process alone, since several would have unequal numbers and wait for ever.

    Raises UserError for a `pipe:` address without allow_pipe, for fewer shards than processes, for several processes
    without a number of batches, and for a checkpoint of another data module.
    """

    def __init__(
        self,
        *,
        urls: str | list[str],
        val_urls: str | list[str] | None,
        pipeline: Pipeline,
        fields: dict[str, Callable[[Image.Image], Tensor]],
        filters: Chooser,
        captions: CaptionChooser,
        buckets: Shapes,
        batch_size: int,
        workers: int,
        epoch_batches: int | None,
        val_batches: int | None,
        max_bad_share: float,
        seed: int,
        allow_pipe: bool,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size={batch_size}: at least 1")
        self.shards = addresses(urls, allow_pipe=allow_pipe)
        self.val_shards = [] if val_urls is None else addresses(val_urls, allow_pipe=allow_pipe)
        self.prepare = Pairs(fields=fields, filters=filters, captions=captions, buckets=buckets)
        self.pipeline, self.batch_size, self.workers = pipeline, batch_size, workers
        self.batches = {"epoch_batches": epoch_batches, "val_batches": val_batches}
        self.max_bad_share, self.seed = max_bad_share, seed
        self.passes = 0
        self.train_loader: WebDatasetLoader | None = None

    def loader(self, shards: list[str], name: str, *, shuffle: bool) -> WebDatasetLoader:
        """`name`: of the setting that says how many batches there are."""
        processes, batches = world_size(), self.batches[name]
        if len(shards) < processes:
            told = f"{len(shards)} shard(s) for {processes} processes, which webdataset gives whole shards"
            raise UserError(f"{told}: write more and smaller ones, or choose data=shards")
        if batches is None and processes > 1:
            told = f"data.{name}=null with {processes} processes, of which some would have fewer batches than others"
            raise UserError(f"{told}: say how many batches an epoch of each process has, as in data.{name}=1000")

        def pass_batches(first_pass: int, endless: bool) -> WebDatasetBatches:
            return WebDatasetBatches(
                self.pipeline,
                shards,
                self.prepare,
                batch_size=self.batch_size,
                shuffle=shuffle,
                first_pass=first_pass,
                endless=endless,
                max_bad_share=self.max_bad_share,
                seed=self.seed,
            )

        return WebDatasetLoader(pass_batches, workers=min(self.workers, len(shards) // processes), batches=batches)

    def train_dataloader(self) -> WebDatasetLoader:
        self.train_loader = self.loader(self.shards, "epoch_batches", shuffle=True)
        self.train_loader.passes = self.passes
        return self.train_loader

    def val_dataloader(self) -> WebDatasetLoader | list[Any]:
        return self.loader(self.val_shards, "val_batches", shuffle=False) if self.val_shards else []

    def state_dict(self) -> dict[str, Any]:
        return {"passes": self.passes if self.train_loader is None else self.train_loader.passes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The next pass begins: there is no position within a pass."""
        if "passes" not in state_dict:
            raise UserError(
                f"the checkpoint is of a run with other data than data=webdataset, it has {sorted(state_dict)}: resume "
                "with its own data settings, or begin a new run from its weights"
            )
        self.passes = state_dict["passes"]


def addresses(urls: str | list[str], *, allow_pipe: bool) -> list[str]:
    """The shards that `urls` name, `pipe:` commands with braces expanded as webdataset does it."""
    shards = shard_urls(urls, allow_pipe=allow_pipe)
    return [one for url in shards for one in (expand_urls(url) if url.startswith("pipe:") else [url])]
