"""Images and captions into shards of latents and embeddings, which prior and decoder train from.

open-kandinsky precompute urls=/data/pairs out=/data/cache clip=runs/clip movq=runs/movq

One safetensors shard for each tar, each written whole or not at all: a run that was stopped goes on where it stopped.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from open_kandinsky import configuration
from open_kandinsky.data import cache_files
from open_kandinsky.data.reading import Sample, Skipped, read_samples
from open_kandinsky.data.transforms import ClipPixels, Pixels
from open_kandinsky.data.urls import shard_urls
from open_kandinsky.load import trained
from open_kandinsky.networks.clip import Clip
from open_kandinsky.networks.movq import MoVQ
from open_kandinsky.weights import store


class Encoders:
    """The frozen networks whose answers are kept. `movq` may be absent: a prior needs no latents."""

    def __init__(self, clip: Clip, movq: MoVQ | None, *, image_size: int, device: str) -> None:
        self.clip, self.movq, self.device = clip, movq, device
        self.clip_pixels = ClipPixels(size=clip.image_size[0])
        self.pixels = Pixels(size=image_size)

    @torch.inference_mode()
    def columns(self, samples: tuple[Sample, ...]) -> dict[str, Tensor]:
        """One row a sample; text states in half precision."""
        images = torch.stack([self.clip_pixels(sample.image) for sample in samples]).to(self.device)
        text = self.clip.encode_text([sample.caption for sample in samples])
        columns = {
            "image_emb": self.clip.encode_image(images),
            "text_emb": text.emb,
            "text_tokens": text.tokens.half(),
            "text_mask": text.mask,
        }
        if self.movq is not None:
            pixels = torch.stack([self.pixels(sample.image) for sample in samples]).to(self.device)
            columns["z"] = self.movq.encode(pixels)
        return columns

    @torch.inference_mode()
    def null(self) -> dict[str, Tensor]:
        """The conditions of nothing, as guidance and condition dropout want them."""
        text = self.clip.null_text()
        emb = {"image_emb": self.clip.null_image(), "text_emb": text.emb}
        return emb | {"text_tokens": text.tokens, "text_mask": text.mask}


def precompute(cfg: DictConfig) -> Path:
    """Run it; returns the folder. ValueError where the folder was made by other encoders."""
    out = Path(cfg.out)
    folders = {name: Path(cfg[name]) for name in ("clip", "movq") if cfg[name] is not None}
    made: dict[str, Any] = {name: trained(folder).to(cfg.device) for name, folder in folders.items()}
    facts = {"encoders": {name: store.sha256(folder / store.WEIGHTS) for name, folder in folders.items()}}
    facts |= {"image_size": cfg.image_size}
    cache_files.begin(out, facts)
    encoders = Encoders(made["clip"], made.get("movq"), image_size=cfg.image_size, device=cfg.device)
    tally = Skipped(max_bad_share=cfg.max_bad_share)
    for url in tqdm(shard_urls(cfg.urls, allow_pipe=cfg.allow_pipe), desc="shards", unit="shard"):
        path = out / f"{Path(url).stem}.safetensors"
        if not path.exists():
            write(path, encoders, read_samples([url], tally), cfg.batch_size)
    cache_files.finish(out, facts | {"source": str(cfg.urls)}, encoders.null())
    if tally.bad:
        print(tally.report())
    return out


def write(path: Path, encoders: Encoders, samples: Iterator[Sample], batch_size: int) -> None:
    """One shard; nothing for a tar without a usable sample."""
    parts, keys, captions = [], [], []
    while batch := tuple(islice(samples, batch_size)):
        parts.append(encoders.columns(batch))
        keys += [sample.key for sample in batch]
        captions += [sample.caption for sample in batch]
    if parts:
        columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        cache_files.write_shard(path, columns, keys, captions)


@configuration.verb("precompute")
def main(cfg: DictConfig) -> None:
    print(f"precomputed: {precompute(cfg)}")


if __name__ == "__main__":
    main()
