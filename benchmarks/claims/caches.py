"""How fast training's batches come out of a cache, against decoding and resizing the pictures they were made from.

    python benchmarks/claims/caches.py [--quick]

A cache of random numbers at Kandinsky 2.1's sizes: latents of 256 px (4 x 32 x 32, half precision), embeddings of 768,
text states of captions of 4 to 24 tokens; beside it JPEGs of 512 px, decoded and resized to 256 for the autoencoder
and to 224 for CLIP. Medians of rounds in one process that take turns, on one thread each.
"""

import io
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from timing import Effort, Entry, alone, main  # noqa: E402

from open_kandinsky.data.cache.folder import CacheShards, PrepareCached, finish, read_manifest, shard_files, write_null
from open_kandinsky.data.cache.rows import before, kept, rows_of
from open_kandinsky.data.cache.shard import fields_of, write_shard
from open_kandinsky.data.cache.table import CachedTable, first_caption, read_rows
from open_kandinsky.data.transforms import ClipPixels, Pixels, open_image

POSITIONS, CLIP, XLM_R, BATCH, SHARD = 77, 768, 1024, 64, 512
PICTURES = 64
FIELDS = ["z", "image_emb", "text_emb", "text_tokens", "text_mask"]
GOAL = 20.0


def states(n: int, width: int, *, uniform: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Of captions of 4 to 24 tokens; `uniform`: padding has one state a caption, as XLM-R's."""
    mask = before(torch.randint(4, 25, (n,)), POSITIONS)
    tokens = torch.randn(n, POSITIONS, width)
    return (torch.where(mask[..., None], tokens, tokens[:, -1:]) if uniform else tokens), mask


def write_cache(folder: Path, images: int, width: int, text_states: str, *, uniform: bool) -> Path:
    folder.mkdir()
    for at in range(0, images, SHARD):
        tokens, mask = states(SHARD, width, uniform=uniform)
        made = {"image_emb": torch.randn(SHARD, CLIP), "z": torch.randn(SHARD, 4, 32, 32).half()}
        texts = {"text_emb": torch.randn(SHARD, CLIP), "text_tokens": tokens, "text_mask": mask}
        keys = [f"{at:05d}/{row:09d}" for row in range(SHARD)]
        rows = rows_of(made, texts, [[f"a caption of {key}"] for key in keys], keys, kept(text_states))
        write_shard(folder / f"{at:05d}.safetensors", rows, {})
    null = {"image_emb": torch.zeros(1, CLIP), "text_emb": torch.zeros(1, CLIP)}
    nothing = torch.ones(1, POSITIONS, dtype=torch.bool)
    write_null(folder, null | {"text_tokens": torch.zeros(1, POSITIONS, width), "text_mask": nothing})
    finish(folder, {"text_states": text_states}, shard_files(folder))
    return folder


def jpegs() -> list[bytes]:
    """Pictures of 512 px that compress as photographs do: about 60 kB each."""
    numbers, made = np.random.default_rng(0), []
    for _ in range(PICTURES):
        light = Image.fromarray(numbers.integers(0, 256, (32, 32, 3), dtype=np.uint8)).resize((512, 512))
        grain = np.asarray(light) + numbers.normal(0, 12, (512, 512, 3))
        data = io.BytesIO()
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=85)
        made.append(data.getvalue())
    return made


def collated(rows: Iterable[dict]) -> int:
    """How many rows came, stacked into batches."""
    count, waiting = 0, []
    for row in rows:
        waiting.append(row)
        if len(waiting) == BATCH:
            batch = {name: [one[name] for one in waiting] for name in waiting[0]}
            batch = {name: torch.stack(c) if isinstance(c[0], torch.Tensor) else c for name, c in batch.items()}
            count, waiting = count + len(batch["key"]), []
    return count


def online(pictures: list[bytes]) -> Callable[[], int]:
    """The loader that an uncached training needs, without its networks."""
    pixels, clip_pixels = Pixels(size=256), ClipPixels(size=224)

    def run() -> int:
        opened = (open_image(data) for data in pictures)
        rows = (
            {"pixels": pixels(i), "clip_pixels": clip_pixels(i), "caption": "a caption", "key": "k"} for i in opened
        )
        return collated(rows)

    return run


def streamed(folder: Path) -> Callable[[], int]:
    """Every shard of a cache, row by row."""
    manifest = read_manifest(folder)
    fields = fields_of(folder, manifest, FIELDS, padding=False)
    shards, prepare = CacheShards(folder=folder, manifest=manifest, fields=fields), PrepareCached(fields)
    draws = random.Random(0)

    def run() -> int:
        read = (example for at, n in enumerate(shards.counts) for _, example in shards.read(at, range(n), None))
        return collated(prepare.row(example, prepare.bucket(example), draws) for example in read)

    return run


def in_memory(folder: Path) -> Callable[[], int]:
    """The same from a table in memory, in random order."""
    manifest = read_manifest(folder)
    fields = fields_of(folder, manifest, FIELDS, padding=False)
    table = CachedTable(read_rows(folder, manifest, fields, None), fields, first_caption)

    def run() -> int:
        order = torch.randperm(len(table.key)).tolist()
        batches = (table.batch(order[at : at + BATCH], 0) for at in range(0, len(order), BATCH))
        return sum(len(batch["key"]) for batch in batches)

    return run


def seconds_an_image(run: Callable[[], int]) -> float:
    begin = time.perf_counter()
    count = run()
    return (time.perf_counter() - begin) / count


def taking_turns(claim: str, ours: Callable[[], int], theirs: Callable[[], int], repeats: int) -> Entry:
    """Seconds an image, of rounds of each in turns; `spread` is of the ratios, over their median."""
    pairs = [(seconds_an_image(ours), seconds_an_image(theirs)) for _ in range(repeats + 1)][1:]
    ratios = [other / own for own, other in pairs]
    ours_s, theirs_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(ratios)
    spread = (max(ratios) - min(ratios)) / ratio
    return {"claim": claim, "ours_s": ours_s, "theirs_s": theirs_s, "ratio": ratio, "goal": GOAL, "spread": spread}


def storage(folder: Path, claim: str) -> Entry:
    """Bytes of text states a caption, against all of them in half and in single precision."""
    manifest = read_manifest(folder)
    width = manifest["fields"]["text_tokens"]["shape"][1]
    fields = fields_of(folder, manifest, ["text_tokens"], padding=False)
    rows = read_rows(folder, manifest, fields, None)
    kept_bytes = rows.columns["text_tokens"].numel() * 2 / len(rows.key)
    return alone(claim, bytes=round(kept_bytes), all_half=POSITIONS * width * 2, all=POSITIONS * width * 4)


def claims(effort: Effort) -> Iterator[Entry]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, bare = SHARD if effort.quick else 4 * SHARD, online(jpegs())
    kinds = {
        "prior, CLIP's states of words": (CLIP, "words", False),
        "decoder, XLM-R's states, words and one of padding": (XLM_R, "all", True),
        "decoder, CLIP's states, all": (CLIP, "all", False),
    }
    with tempfile.TemporaryDirectory() as root:
        for at, (name, (width, text_states, uniform)) in enumerate(kinds.items()):
            folder = write_cache(Path(root) / str(at), images, width, text_states, uniform=uniform)
            yield taking_turns(f"streamed cache, {name}", streamed(folder), bare, effort.repeats)
            yield taking_turns(f"cache in memory, {name}", in_memory(folder), bare, effort.repeats)
            yield storage(folder, f"text states a caption, {name}")


if __name__ == "__main__":
    main(claims, __doc__)
