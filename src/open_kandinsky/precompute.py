"""Encode images and captions into shards of latents and embeddings, from which prior and decoder train.

open-kandinsky precompute urls=/data/pairs out=/data/cache clip=runs/clip movq=runs/movq
open-kandinsky precompute urls=/data out=/cache clip=kandinsky-2-1 movq=kandinsky-2-1 image_size=256
open-kandinsky precompute urls=/data/pairs out=/data/cache clip=runs/clip movq=runs/movq check=100

One safetensors shard for each tar, complete or absent. Any number of processes with the same command share the work
through the folder (torchrun, a SLURM array, a second terminal), and a run that was stopped goes on where it stopped.
Shards that were made of other tars, encoders or sizes are refused by name.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from open_kandinsky import loading
from open_kandinsky.config import compose
from open_kandinsky.core import files, secrets
from open_kandinsky.core.errors import UserError
from open_kandinsky.core.leases import Leases, share
from open_kandinsky.data.cache.encode import Encoders, Input, PrepareInputs, inputs
from open_kandinsky.data.cache.folder import begin, read_manifest
from open_kandinsky.data.cache.make import (
    BadSampleLimit,
    FinishUnit,
    Maker,
    NullUnit,
    ShardUnit,
    Survey,
    chosen,
    differing,
    problems,
    survey,
)
from open_kandinsky.data.cache.rows import kept
from open_kandinsky.data.tar.opening import shard_urls
from open_kandinsky.data.transforms import ClipPixels, Pixels, check_background
from open_kandinsky.pipeline.execution import take_device
from open_kandinsky.weights import store
from open_kandinsky.weights.part import Part

ENCODERS = ("clip", "movq", "text")
CLAIMS = ".claims"
CHOICES = {"latents": ("float16", "float32"), "precision": ("float32", "bfloat16")}


def precompute(cfg: DictConfig) -> Path:
    """Make the shards that are missing, together with other processes; returns the folder.

    Raises UserError where the folder has shards of other encoders, sizes or tars, and for too many bad samples.
    """
    check_choices(cfg)
    take_device(cfg.device)
    out, urls = Path(cfg.out), cfg.urls if isinstance(cfg.urls, str) else [str(url) for url in cfg.urls]
    tars = inputs(shard_urls(urls, allow_pipe=cfg.allow_pipe))
    parts = {name: loading.part(name, {name: cfg[name]}) for name in ENCODERS if cfg[name] is not None}
    size = image_size(cfg.image_size, parts.get("movq"))
    recipe = recipe_of(cfg, parts, size)
    maker = Maker(
        partial(encoders, cfg, parts, size), batch_size=cfg.batch_size, workers=cfg.workers, largest=cfg.max_member_mb
    )
    if cfg.check is not None:
        check(cfg, out, tars, survey(out, tars, recipe), maker)
        return out
    files.remove_leftovers(out)
    begin(out, recipe)
    survey(out, tars, recipe).refuse_stale()
    make(cfg, out, tars, recipe, maker)
    if maker.long:
        print(f"{maker.long} captions are longer than the text encoder reads: their ends are in no embedding")
    finish(cfg, out, tars, recipe)
    return out


def make(cfg: DictConfig, out: Path, tars: Sequence[Input], recipe: Mapping[str, Any], maker: Maker) -> None:
    """Make every shard that no other process makes; returns when all are there."""
    limit = BadSampleLimit(out, tars, max_bad_share=cfg.max_bad_share)
    units = [NullUnit(out, maker), *(ShardUnit(one, out, recipe, maker, limit) for one in tars)]
    with tqdm(total=len(units), desc="shards", unit="shard") as bar:
        share(units, Leases(out / CLAIMS), seen=bar.update)


def finish(cfg: DictConfig, out: Path, tars: Sequence[Input], recipe: Mapping[str, Any]) -> None:
    """Statistics and manifest, by the first process; every process reports skipped samples and shards without a tar."""
    found = survey(out, tars, recipe)
    found.refuse_stale()
    total = BadSampleLimit(out, tars, max_bad_share=cfg.max_bad_share).total
    total.check()
    facts = {**recipe, "source": secrets.masked(str(cfg.urls)), "skipped": {"seen": total.seen, "bad": total.bad}}
    shards = sorted(out / f"{name}.safetensors" for name in found.about)
    share([FinishUnit(out, facts, shards)], Leases(out / CLAIMS), seen=int)
    for line in filter(None, (None if total.clean else total.report(), found.orphans_line())):
        print(line)


def check(cfg: DictConfig, out: Path, tars: Sequence[Input], found: Survey, maker: Maker) -> None:
    """Compare `cfg.check` samples with the encoders. Raises UserError that names every difference."""
    read_manifest(out)
    counts = {name: about["images"] for name, about in found.about.items() if name not in found.stale}
    by_name, lines = {one.name: one for one in tars}, problems(found)
    rows = chosen(counts, cfg.check)
    for name, some in tqdm(rows.items(), desc="compared", unit="shard"):
        lines += differing(out / f"{name}.safetensors", by_name[name], some, maker, cfg.precision)
    if lines:
        raise UserError(f"{str(out)!r} is not what precompute would make:\n  " + "\n  ".join(lines))
    print(f"compared {sum(map(len, rows.values()))} samples of {len(rows)} shards with the encoders: no difference")


def check_choices(cfg: DictConfig) -> None:
    """Raises UserError for settings that can be refused before anything is read."""
    kept(cfg.text_states)
    for name, choices in CHOICES.items():
        if cfg[name] not in choices:
            raise UserError(f"{name}={cfg[name]}: choose one of {', '.join(choices)}")
    for name in ("batch_size", "workers", "check", "max_member_mb", "image_size"):
        if cfg[name] is not None and (not isinstance(cfg[name], int) or cfg[name] < 1):
            raise UserError(f"{name}={cfg[name]}: a whole number, at least 1")
    if not cfg.caption_places:
        raise UserError("caption_places=[]: say where captions lie, as in caption_places=[txt]")


def image_size(wanted: int | None, movq: Part | None) -> int | None:
    """Pixels a side of the pictures that `movq` encodes: as many as in its training, or as many as `wanted`.

    Raises UserError where its weights do not say, and for a size that it cannot halve as often as it does.
    """
    if movq is None:
        return None
    trained, halvings = movq.config["dims"].get("image_size"), len(movq.config["stage"]["network"]["multipliers"]) - 1
    size = trained if wanted is None else wanted
    if size is None:
        raise UserError(
            f"image_size is not given, and the autoencoder in {movq.folder} does not say what it was trained on: "
            "image_size=256, or as many pixels a side as the decoder is to draw"
        )
    if size < 1 or size % 2**halvings:
        raise UserError(f"image_size={size}: this autoencoder takes multiples of {2**halvings}")
    if trained is not None and size != trained:
        print(f"image_size={size}: the autoencoder in {movq.folder} was trained on pictures of {trained}", flush=True)
    return size


def recipe_of(cfg: DictConfig, parts: Mapping[str, Part], size: int | None) -> dict[str, Any]:
    """Everything that decides the content of a shard, except its format and rounding in another batch size."""
    return {
        "encoders": {name: fingerprint(part) for name, part in parts.items()},
        "image_size": size,
        "crop": "centre square",
        "caption_places": list(cfg.caption_places),
        "text_states": cfg.text_states,
        "latents": cfg.latents,
        "precision": cfg.precision,
    } | ({} if cfg.background == "white" else {"background": cfg.background})


def fingerprint(part: Part) -> str:
    """A hash of an encoder's weights and structure, and of its tokenizer where it has one."""
    network = dict(part.config["stage"]["network"])
    tokenizer = network.pop("tokenizer", None)
    words = sorted(Path(tokenizer).iterdir()) if tokenizer else []
    hashes = [store.sha256(file) for file in (*part.files, *words) if file.is_file()]
    return hashlib.sha256(json.dumps([network, hashes], sort_keys=True).encode()).hexdigest()


def encoders(cfg: DictConfig, parts: Mapping[str, Part], size: int | None) -> tuple[Encoders, PrepareInputs]:
    """The networks, and the preparation of samples for them."""
    loaded = {name: loading.network(part) for name, part in parts.items()}
    clip, transforms = loaded["clip"], {"image_emb": ClipPixels(size=loaded["clip"].image_size[0])}
    transforms |= {} if size is None else {"z": Pixels(size=size)}
    networks = Encoders(
        clip=clip,
        movq=loaded.get("movq"),
        text=loaded.get("text", clip),
        keep=kept(cfg.text_states),
        latents=store.DTYPES[cfg.latents],
        precision=store.DTYPES[cfg.precision],
        device=cfg.device,
    )
    return networks, PrepareInputs(transforms, list(cfg.caption_places), check_background(cfg.background))


@compose.command("precompute")
def main(cfg: DictConfig) -> None:
    print(f"precomputed: {precompute(cfg)}")


if __name__ == "__main__":
    main()
