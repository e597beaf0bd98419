"""Images and captions into shards of latents and embeddings, which prior and decoder train from.

open-kandinsky precompute urls=/data/pairs out=/data/cache clip=runs/clip movq=runs/movq
open-kandinsky precompute urls=/data out=/cache clip=kandinsky-2-1 movq=kandinsky-2-1 image_size=256
open-kandinsky precompute urls=/data/pairs out=/data/cache clip=runs/clip movq=runs/movq check=100

One safetensors shard for each tar, each written whole or not at all. Any number of processes with the same words share
the work through the folder (torchrun, a SLURM array, a second terminal), and a run that was stopped goes on where it
stopped. What was made of other tars, encoders or sizes is refused by name.
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
from open_kandinsky.data.transforms import ClipPixels, Pixels
from open_kandinsky.pipeline.execution import take_device
from open_kandinsky.weights import store
from open_kandinsky.weights.part import Part

ENCODERS = ("clip", "movq", "text")
CLAIMS = ".claims"
CHOICES = {"latents": ("float16", "float32"), "precision": ("float32", "bfloat16")}


def precompute(cfg: DictConfig) -> Path:
    """Make what is not there yet, beside any others who do; returns the folder.

    ValueError where the folder holds what other encoders, sizes or tars made, or too many samples are bad.
    """
    check_choices(cfg)
    take_device(cfg.device)
    out, given = Path(cfg.out), inputs(shard_urls(urls_of(cfg), allow_pipe=cfg.allow_pipe))
    parts = {name: loading.part(name, {name: cfg[name]}) for name in ENCODERS if cfg[name] is not None}
    size = image_size(cfg.image_size, parts.get("movq"))
    recipe = recipe_of(cfg, parts, size)
    maker = Maker(
        partial(encoders, cfg, parts, size), batch_size=cfg.batch_size, workers=cfg.workers, largest=cfg.max_member_mb
    )
    if cfg.check is not None:
        check(cfg, out, given, survey(out, given, recipe), maker)
        return out
    files.remove_leftovers(out)
    begin(out, recipe)
    survey(out, given, recipe).refuse_stale()
    make(cfg, out, given, recipe, maker)
    if maker.long:
        print(f"{maker.long} captions are longer than the text encoder reads: their ends are in no embedding")
    finish(cfg, out, given, recipe)
    return out


def make(cfg: DictConfig, out: Path, given: Sequence[Input], recipe: Mapping[str, Any], maker: Maker) -> None:
    """Every shard that nobody else makes; returns when all are there."""
    judge = BadSampleLimit(out, given, max_bad_share=cfg.max_bad_share)
    units = [NullUnit(out, maker), *(ShardUnit(one, out, recipe, maker, judge) for one in given)]
    with tqdm(total=len(units), desc="shards", unit="shard") as bar:
        share(units, Leases(out / CLAIMS), seen=bar.update)


def finish(cfg: DictConfig, out: Path, given: Sequence[Input], recipe: Mapping[str, Any]) -> None:
    """Statistics and manifest, by whoever comes first; each process says what was skipped, and which are orphans."""
    found = survey(out, given, recipe)
    found.refuse_stale()
    total = BadSampleLimit(out, given, max_bad_share=cfg.max_bad_share).total
    total.check()
    facts = {**recipe, "source": secrets.masked(str(cfg.urls)), "skipped": {"seen": total.seen, "bad": total.bad}}
    shards = sorted(out / f"{name}.safetensors" for name in found.about)
    share([FinishUnit(out, facts, shards)], Leases(out / CLAIMS), seen=int)
    for told in filter(None, (None if total.clean else total.report(), found.told_orphans())):
        print(told)


def check(cfg: DictConfig, out: Path, given: Sequence[Input], found: Survey, maker: Maker) -> None:
    """Compare `cfg.check` samples with the encoders. ValueError that names whatever is not as it should be."""
    read_manifest(out)
    counts = {name: about["images"] for name, about in found.about.items() if name not in found.stale}
    by_name, told = {one.name: one for one in given}, problems(found)
    rows = chosen(counts, cfg.check)
    for name, those in tqdm(rows.items(), desc="compared", unit="shard"):
        told += differing(out / f"{name}.safetensors", by_name[name], those, maker, cfg.precision)
    if told:
        raise UserError(f"{str(out)!r} is not what precompute would make:\n  " + "\n  ".join(told))
    print(f"compared {sum(map(len, rows.values()))} samples of {len(rows)} shards with the encoders: no difference")


def check_choices(cfg: DictConfig) -> None:
    """ValueError for what can be refused before anything is read."""
    kept(cfg.text_states)
    for name, choices in CHOICES.items():
        if cfg[name] not in choices:
            raise UserError(f"{name}={cfg[name]}: choose one of {', '.join(choices)}")
    for name in ("batch_size", "workers", "check", "max_member_mb", "image_size"):
        if cfg[name] is not None and (not isinstance(cfg[name], int) or cfg[name] < 1):
            raise UserError(f"{name}={cfg[name]}: a whole number, at least 1")
    if not cfg.caption_places:
        raise UserError("caption_places=[]: say where captions lie, as in caption_places=[txt]")


def urls_of(cfg: DictConfig) -> str | list[str]:
    return cfg.urls if isinstance(cfg.urls, str) else [str(url) for url in cfg.urls]


def image_size(asked: int | None, movq: Part | None) -> int | None:
    """Pixels a side of the pictures that `movq` encodes: those that its training saw, unless others are asked for.

    ValueError where its weights do not say, or it cannot halve so many pixels as often as it does.
    """
    if movq is None:
        return None
    trained, halvings = movq.config["dims"].get("image_size"), len(movq.config["stage"]["network"]["multipliers"]) - 1
    size = trained if asked is None else asked
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
    """All that decides what a tar becomes, but for the code's own format, and but for rounding in another batch."""
    return {
        "encoders": {name: fingerprint(part) for name, part in parts.items()},
        "image_size": size,
        "crop": "centre square",
        "caption_places": list(cfg.caption_places),
        "text_states": cfg.text_states,
        "latents": cfg.latents,
        "precision": cfg.precision,
    }


def fingerprint(part: Part) -> str:
    """Of an encoder's weights, of its structure, and of its tokenizer where it has one."""
    network = dict(part.config["stage"]["network"])
    tokenizer = network.pop("tokenizer", None)
    words = sorted(Path(tokenizer).iterdir()) if tokenizer else []
    hashes = [store.sha256(file) for file in (*part.files, *words) if file.is_file()]
    return hashlib.sha256(json.dumps([network, hashes], sort_keys=True).encode()).hexdigest()


def encoders(cfg: DictConfig, parts: Mapping[str, Part], size: int | None) -> tuple[Encoders, PrepareInputs]:
    """The networks, and what prepares pictures for them."""
    made = {name: loading.network(part) for name, part in parts.items()}
    clip, transforms = made["clip"], {"image_emb": ClipPixels(size=made["clip"].image_size[0])}
    transforms |= {} if size is None else {"z": Pixels(size=size)}
    networks = Encoders(
        clip=clip,
        movq=made.get("movq"),
        text=made.get("text", clip),
        keep=kept(cfg.text_states),
        latents=store.DTYPES[cfg.latents],
        precision=store.DTYPES[cfg.precision],
        device=cfg.device,
    )
    return networks, PrepareInputs(transforms, list(cfg.caption_places))


@compose.command("precompute")
def main(cfg: DictConfig) -> None:
    print(f"precomputed: {precompute(cfg)}")


if __name__ == "__main__":
    main()
