"""Writes toy pictures: as tar shards in img2dataset's layout, and in COCO's layout.

A shard `00000.tar` holds `000000000.png`, `.txt` and `.json` for each sample. The files in COCO's layout are for trying
COCO's evaluation where there is no COCO.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from webdataset.writer import TarWriter

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.shapes.world import SPLITS, Scene, World, decks, scenes

Group = tuple[Scene, ...]

LARGEST_SHARD = 10_000  # a key is five digits of shard and four of place


def write_shapes(out: Path, *, world: World, images: int, val_images: int, seed: int, per_shard: int) -> None:
    """Write `out/train` and one folder of `val_images` for each split; the same seed gives the same bytes.

    Training holds seen scenes, two pairs to a single; a pair is followed by its twin where that is seen too.
    Raises UserError where `out` already holds something, and for a `per_shard` that keys cannot number.
    """
    if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise UserError(f"{out} is not an empty folder: remove it, or write to another one")
    if not 2 <= per_shard <= LARGEST_SHARD:
        raise UserError(f"per_shard={per_shard}: choose a number from 2 to {LARGEST_SHARD}")
    rng = np.random.default_rng([seed, 0])
    singles, pairs = decks(world, "seen", rng)
    shards = (list(balanced(world, singles, pairs, n)) for n in shard_sizes(images, per_shard))
    write_shards(Path(out) / "train", shards, world, rng)
    for number, split in enumerate(SPLITS, start=1):
        rng = np.random.default_rng([seed, number])
        stream = scenes(world, split, rng)
        shards = ([(scene,) for scene in islice(stream, n)] for n in shard_sizes(val_images, per_shard))
        write_shards(Path(out) / split, shards, world, rng)


def shard_sizes(images: int, per_shard: int) -> list[int]:
    """How many images each shard holds: only the last may be short."""
    return [min(per_shard, images - start) for start in range(0, images, per_shard)]


def balanced(world: World, singles: Iterator[Scene], pairs: Iterator[Scene], images: int) -> Iterator[Group]:
    """One shard's groups, `images` scenes in all: two thirds are pairs, and no group goes on in the next shard."""
    pairs_left, singles_left = images - images // 3, images // 3
    while pairs_left > 1:  # one place is too few for a twin: a single takes it
        group = with_twin(world, next(pairs))
        yield group
        pairs_left -= len(group)
        due = singles_left - pairs_left // 2  # as pairs and singles are to end together
        yield from ((single,) for single in islice(singles, due))
        singles_left -= due
    yield from ((single,) for single in islice(singles, singles_left + pairs_left))


def with_twin(world: World, pair: Scene) -> Group:
    """The pair and, unless it is held out, the twin that uses the same words."""
    twin = world.swap(pair)
    return (pair, twin) if world.split(twin) == "seen" else (pair,)


def write_shards(folder: Path, shards: Iterator[list[Group]], world: World, rng: np.random.Generator) -> None:
    """Each shard is complete or absent."""
    folder.mkdir(parents=True)
    for number, groups in enumerate(shards):
        path = folder / f"{number:05d}.tar"
        with files.replacing(path) as part, part.open("wb") as file:
            write_tar(file, number, groups, world, rng)


def write_tar(file: io.BufferedWriter, shard: int, groups: list[Group], world: World, rng: np.random.Generator) -> None:
    """Write one shard's samples; the scenes of a group are adjacent and name the group's first key."""
    keys = (f"{shard:05d}{place:04d}" for place in range(LARGEST_SHARD))
    with tar_writer(file) as tar:
        for group in groups:
            members = [(next(keys), scene) for scene in group]
            for key, scene in members:
                png = encode(world.render(scene, rng), format="png", compress_level=1)
                fields = describe(key, scene, world, png) | {"group": members[0][0]}
                texts = {"txt": fields["caption"].encode(), "json": json.dumps(fields).encode()}
                write_sample(tar, key, {"png": png} | texts)


def describe(key: str, scene: Scene, world: World, png: bytes) -> dict:
    """img2dataset's fields of one sample, and the scene that was drawn."""
    sides = {"width": world.size, "height": world.size, "original_width": world.size, "original_height": world.size}
    status = {"url": "", "status": "success", "error_message": None, "exif": "{}"}
    sha256 = hashlib.sha256(png).hexdigest()
    return {"key": key, "caption": world.caption(scene), **status, **sides, "sha256": sha256, "scene": scene.to_json()}


def encode(image: UInt8[np.ndarray, "h w 3"], **options: Any) -> bytes:
    """A picture as the bytes of a file, by PIL's options of saving."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, **options)
    return buffer.getvalue()


def tar_writer(file: io.BufferedWriter) -> TarWriter:
    """webdataset's writer of tars, without dates and owners, so that the bytes depend on the content alone."""
    return TarWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False)


def write_sample(tar: TarWriter, key: str, members: Mapping[str, bytes]) -> None:
    """Append a sample's files by their endings, in the given order; in one call webdataset would sort them."""
    for kind, content in members.items():
        tar.write({"__key__": key, kind: content})


COCO_STREAM = 9  # of random numbers; the toy set's splits have the first ones


def write_coco(out: Path, *, world: World, images: int, seed: int) -> None:
    """`out/annotations/captions_val2014.json` and JPEGs in `out/val2014/`, a caption each; the same seed, the same."""
    rng = np.random.default_rng([seed, COCO_STREAM])
    tree: dict[str, list[dict]] = {"images": [], "annotations": []}
    for number, scene in enumerate(islice(scenes(world, "seen", rng), images), start=1):
        name = f"COCO_val2014_{number:012d}.jpg"
        files.write(out / "val2014" / name, encode(world.render(scene, rng), format="jpeg", quality=95))
        tree["images"].append({"id": number, "file_name": name, "width": world.size, "height": world.size})
        tree["annotations"].append({"id": number, "image_id": number, "caption": world.caption(scene)})
    files.write(out / "annotations" / "captions_val2014.json", json.dumps(tree))
