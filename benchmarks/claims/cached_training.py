"""Training the decoder from a cache, against encoding its pictures and captions in each step: the whole chain.

Online, a step decodes and resizes JPEGs of 512 px, and MoVQ (67M) and CLIP (ViT-L/14) encode them and their captions,
in float32, as `precompute` does. Cached, it takes rows of a cache of the same sizes from its files. Then both make the
same step, 2.1's shape at 128 channels, 256 px, in bfloat16 by autocast. Random weights: no time depends on them.
"""

import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from caches import CLIP, jpegs, write_cache  # noqa: E402
from pairs import network, of_width  # noqa: E402
from timing import Effort, Entry, compared, main  # noqa: E402

from open_kandinsky.config import compose  # noqa: E402
from open_kandinsky.core.draws import ALONE  # noqa: E402
from open_kandinsky.data.cache.encode import (
    Encoders,  # noqa: E402
    PreparedInputs,  # noqa: E402
)
from open_kandinsky.data.cache.folder import (  # noqa: E402
    CacheShards,
    PrepareCached,
    read_manifest,  # noqa: E402
)
from open_kandinsky.data.cache.rows import kept  # noqa: E402
from open_kandinsky.data.cache.shard import fields_of  # noqa: E402
from open_kandinsky.data.transforms import ClipPixels, Pixels, open_image  # noqa: E402
from open_kandinsky.train import make  # noqa: E402

BATCH, GOAL = 4, 2.0
FIELDS = ["z", "image_emb", "text_emb", "text_tokens"]
SIZES = ["stage=decoder", *of_width(128), "dims.decoder_text_width=768"]
UNREAD = ["sampling=none", "data.padding=false"]  # no data is read by a config
SMALL = [*of_width(32), "stage.network.blocks=1"]  # to see that it runs
Batches = Iterator[dict[str, Any]]


def online(small: bool) -> Batches:
    """Encoded anew each time. `small`: pictures of 64 px for MoVQ."""
    clip, _ = network("stage=clip", *UNREAD)
    movq, _ = network("stage=movq", "network/movq=movq_67m", *UNREAD)
    numbers = {"latents": torch.float16, "precision": torch.float32, "device": "cpu"}
    encoders = Encoders(clip=clip, movq=movq, text=clip, keep=kept("all"), **numbers)
    pixels, clip_pixels = Pixels(size=64 if small else 256), ClipPixels(size=224)
    pictures = cycle(jpegs())
    while True:
        images = [open_image(data) for data in islice(pictures, BATCH)]
        samples = [PreparedInputs("k", ["a caption"], {"z": pixels(i), "image_emb": clip_pixels(i)}) for i in images]
        made = encoders.images(samples) | encoders.texts(clip.encode_text, ["a caption"] * BATCH)
        yield {name: made[name].float() for name in FIELDS} | {"key": ["k"] * BATCH}


def cached(folder: Path) -> Batches:
    """From the files, shard by shard, again and again."""
    manifest = read_manifest(folder)
    fields = fields_of(folder, manifest, FIELDS, padding=False)
    shards, prepare = CacheShards(folder=folder, manifest=manifest, fields=fields), PrepareCached(fields)
    draws = random.Random(0)
    while True:
        for at, count in enumerate(shards.counts):
            read = (example for _, example in shards.read(at, range(count), None))
            rows = (prepare.row(example, prepare.bucket(example), draws) for example in read)
            while batch := list(islice(rows, BATCH)):
                tensors = {name: torch.stack([row[name] for row in batch]).float() for name in FIELDS}
                yield tensors | {"key": [row["key"] for row in batch]}


class Training:
    """A step by hand: loss, gradients, optimiser, moving average."""

    def __init__(self, small: bool) -> None:
        cfg: Any = compose.compose("train", [*SIZES, *(SMALL if small else []), "data.path=none"])
        torch.manual_seed(0)
        self.stage = make(cfg.stage)
        shapes = {"image_emb": (768,), "text_emb": (768,), "text_tokens": (77, 768)}
        self.stage.null.set(**{name: torch.zeros(1, *shape) for name, shape in shapes.items()})
        self.parameters = [p for p in self.stage.network.parameters() if p.requires_grad]
        self.optimizer = self.stage.optimizer(self.parameters)
        self.average = [p.detach().clone() for p in self.parameters]

    def step(self, batch: dict[str, Any]) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.stage.losses(batch, ALONE)[0].mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1e-4)


def stepping(training: Training, batches: Batches) -> Callable[[], None]:
    return lambda: training.step(next(batches))


def claims(effort: Effort) -> Iterator[Entry]:
    torch.manual_seed(0)
    training = Training(effort.quick)
    with tempfile.TemporaryDirectory() as root:
        folder = write_cache(Path(root) / "cache", 512, CLIP, "all", uniform=False)
        ours, theirs = stepping(training, cached(folder)), stepping(training, online(effort.quick))
        few = effort._replace(repeats=min(effort.repeats, 5))
        channels = 32 if effort.quick else 128
        told = f"decoder training, {channels} channels, batch {BATCH}, bf16-mixed: cached against online"
        yield compared(told, ours, theirs, GOAL, few)


if __name__ == "__main__":
    main(claims, __doc__)
