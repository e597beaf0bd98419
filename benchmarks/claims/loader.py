"""How near the streaming loader comes to what decoding alone costs, and what a resume late in an epoch costs.

    python benchmarks/claims/loader.py [--quick] [--json results.json]

JPEGs of 512 px to 256, by two workers, against two processes that decode and resize the same bytes, held in memory, and
do nothing else. The loader is timed between batches, when its queue is empty and its workers are busy.
"""

import io
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from timing import Effort, Entry, compared, main

from open_kandinsky.data.pairs import Captions, Filters, OneShape
from open_kandinsky.data.shard_data import ShardData
from open_kandinsky.data.tar.index import ShardIndex
from open_kandinsky.data.tar.reader import TarShards, count
from open_kandinsky.data.tar.sample import NoSidecars
from open_kandinsky.data.tar.stats import SampleStats
from open_kandinsky.data.transforms import Pixels, open_image

WORKERS, BATCH, QUEUED = 2, 32, 2 * 2  # batches that a DataLoader's workers make ahead
PICTURES = 64


def jpegs(side: int) -> list[bytes]:
    """Pictures that compress as photographs do."""
    numbers, made = np.random.default_rng(0), []
    for _ in range(PICTURES):
        light = Image.fromarray(numbers.integers(0, 256, (32, 32, 3), dtype=np.uint8)).resize((side, side))
        grain = np.asarray(light) + numbers.normal(0, 12, (side, side, 3))
        data = io.BytesIO()
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=85)
        made.append(data.getvalue())
    return made


def write_shards(folder: Path, pictures: list[bytes], shards: int, samples: int) -> list[str]:
    """As img2dataset writes them."""
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row in range(samples):
                for kind, data in {"jpg": pictures[row % PICTURES], "json": b"{}", "txt": b"a caption"}.items():
                    info = tarfile.TarInfo(f"{shard:05d}{row:04d}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return [str(path) for path in sorted(folder.glob("*.tar"))]


def counted(urls: list[str]) -> ShardIndex:
    return ShardIndex(urls, [count(url).count for url in urls])


def module(urls: list[str], index: ShardIndex, workers: int, buffer: int) -> ShardData:
    return ShardData(
        urls=urls,
        sources=None,
        val_urls=None,
        fields={"pixels": Pixels(size=256)},
        filters=Filters(min_side=None, min_pixels=None, max_aspect=None, known={}, if_known={}, labels={}),
        captions=Captions(weights={"txt": 1.0}),
        buckets=OneShape(),
        index=lambda urls: index,
        background="white",
        parquet_columns=None,
        batch_size=BATCH,
        workers=workers,
        shuffle_buffer=buffer,
        in_memory=False,
        distinct_captions=False,
        max_bad_share=0.0,
        max_member_mb=256,
        seed=0,
        allow_pipe=False,
    )


def loaded(data: ShardData, batches: int) -> float:
    """Seconds an image, once the workers are at work."""
    loader = data.train_dataloader()
    endless = chain.from_iterable(iter(lambda: iter(loader), None))
    for _ in islice(endless, QUEUED + 2):
        pass
    start = time.perf_counter()
    for _ in islice(endless, batches):
        pass
    took = time.perf_counter() - start
    loader.close()  # its workers are not to work while others are timed
    return took / (batches * BATCH)


def decoded(pictures: list[bytes]) -> float:
    """A share of the bare loop, in a process of its own."""
    torch.set_num_threads(1)
    pixels = Pixels(size=256)
    return sum(float(pixels(open_image(data))[0, 0, 0]) for data in pictures)


def bare(pool: Any, pictures: list[bytes], images: int) -> float:
    """Seconds an image, each of the processes with its part."""
    share = (pictures * (1 + images // WORKERS // PICTURES))[: images // WORKERS]
    start = time.perf_counter()
    pool.map(decoded, [share] * WORKERS)
    return (time.perf_counter() - start) / (WORKERS * len(share))


def throughput(folder: Path, effort: Effort) -> Entry:
    side, images = (64, 256) if effort.quick else (512, 1024)
    pictures = jpegs(side)
    urls = write_shards(folder, pictures, shards=4, samples=256)
    data = module(urls, counted(urls), workers=WORKERS, buffer=100)
    with get_context("spawn").Pool(WORKERS) as pool:
        bare(pool, pictures, PICTURES)
        turns = [(loaded(data, images // BATCH), bare(pool, pictures, images)) for _ in range(effort.repeats)]
    ratios = [theirs / ours for ours, theirs in turns]
    ours_s, theirs_s = (median(column) * images for column in zip(*turns, strict=True))
    entry = {"claim": f"loader, {images} JPEGs {side} -> 256, 2 workers, against decoding and resizing alone"}
    spread = (max(ratios) - min(ratios)) / median(ratios)
    return entry | {"ours_s": ours_s, "theirs_s": theirs_s, "ratio": median(ratios), "goal": 0.9, "spread": spread}


def resumed(folder: Path, effort: Effort) -> Entry:
    """To the first batch after 90% of an epoch, against reading these 90% and decoding nothing."""
    shards, samples = (20, 100) if effort.quick else (40, 1000)
    urls = write_shards(folder, jpegs(64), shards, samples)
    index, total = counted(urls), shards * samples
    begun = module(urls, index, workers=0, buffer=1000)
    saved = begun.train_dataloader() and begun.state_dict()
    saved["progress"][0]["places"][0]["places"][0]["taken"] = total * 9 // 10

    def first_batch() -> None:
        late = module(urls, index, workers=0, buffer=1000)
        late.load_state_dict(saved)
        next(iter(late.train_dataloader()))

    def read_through() -> None:
        shards, tally = TarShards(index, NoSidecars()), SampleStats(max_bad_share=0.0)
        every = chain.from_iterable(shards.read(shard, range(samples), tally) for shard in range(len(urls)))
        for _ in islice(every, total * 9 // 10):
            pass

    claim = f"resume at 90% of {total} samples, to its first batch, against reading up to there"
    return compared(claim, first_batch, read_through, 1.0, effort)


def claims(effort: Effort) -> Iterator[Entry]:
    parts: list[Callable[[Path, Effort], Entry]] = [throughput, resumed]
    with tempfile.TemporaryDirectory() as root:
        for part in parts:
            yield part(Path(root) / part.__name__, effort)


if __name__ == "__main__":
    main(claims, __doc__)
