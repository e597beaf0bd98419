"""Writes the toy set as tar shards in img2dataset's layout: `00000.tar` holds `000000000.png`, `.txt` and `.json`.

Some toy pictures in COCO's layout, so that COCO's evaluation can be seen to run where there is no COCO.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.shapes.world import SPLITS, Scene, World, decks, scenes

Group = tuple[Scene, ...]

LARGEST_SHARD = 10_000  # a key is five digits of shard and four of place


def write_shapes(out: Path, *, world: World, images: int, val_images: int, seed: int, per_shard: int) -> None:
    """Write `out/train` and one folder of `val_images` for each split; the same seed gives the same bytes.

    Training holds seen scenes, two pairs to a single; a pair is followed by its twin where that is seen too.
    Raises ValueError where `out` already holds something, or `per_shard` cannot be.
    """
    refuse(Path(out), per_shard)
    rng = np.random.default_rng([seed, 0])
    singles, pairs = decks(world, "seen", rng)
    shards = (list(balanced(world, singles, pairs, n)) for n in shard_sizes(images, per_shard))
    write_shards(Path(out) / "train", shards, world, rng)
    for number, split in enumerate(SPLITS, start=1):
        rng = np.random.default_rng([seed, number])
        stream = scenes(world, split, rng)
        shards = ([(scene,) for scene in islice(stream, n)] for n in shard_sizes(val_images, per_shard))
        write_shards(Path(out) / split, shards, world, rng)


def refuse(out: Path, per_shard: int) -> None:
    """Raise ValueError for what a person can have got wrong, before anything is written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder: remove it, or write to another one")
    if not 2 <= per_shard <= LARGEST_SHARD:
        raise UserError(f"per_shard={per_shard}: choose a number from 2 to {LARGEST_SHARD}")


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
    """A shard is there whole or not at all."""
    folder.mkdir(parents=True)
    for number, groups in enumerate(shards):
        path = folder / f"{number:05d}.tar"
        with files.replacing(path) as part, part.open("wb") as file:
            write_tar(file, number, groups, world, rng)


def write_tar(file: io.BufferedWriter, shard: int, groups: list[Group], world: World, rng: np.random.Generator) -> None:
    """Write one shard's samples; those of one group stand side by side and name the same first key."""
    keys = (f"{shard:05d}{place:04d}" for place in range(LARGEST_SHARD))
    with tar_of(file) as tar:
        for group in groups:
            members = [(next(keys), scene) for scene in group]
            for key, scene in members:
                png = encode(world.render(scene, rng))
                fields = describe(key, scene, world, png) | {"group": members[0][0]}
                add(tar, f"{key}.png", png)
                add(tar, f"{key}.txt", fields["caption"].encode())
                add(tar, f"{key}.json", json.dumps(fields).encode())


def describe(key: str, scene: Scene, world: World, png: bytes) -> dict:
    """img2dataset's fields of one sample, and the scene that was drawn."""
    sides = {"width": world.size, "height": world.size, "original_width": world.size, "original_height": world.size}
    status = {"url": "", "status": "success", "error_message": None, "exif": "{}"}
    sha256 = hashlib.sha256(png).hexdigest()
    return {"key": key, "caption": world.caption(scene), **status, **sides, "sha256": sha256, "scene": scene.to_json()}


def encode(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png", compress_level=1)
    return buffer.getvalue()


def tar_of(file: io.BufferedWriter) -> tarfile.TarFile:
    """A tar to be written, in the oldest form that everything reads."""
    return tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a file that has no date and no owner, so that the archive depends on its content alone."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


SPLIT = 9  # a stream of its own beside those of the toy set's splits


def write_coco(out: Path, *, world: World, images: int, seed: int) -> None:
    """`out/annotations/captions_val2014.json` and JPEGs in `out/val2014/`, a caption each; the same seed, the same."""
    rng = np.random.default_rng([seed, SPLIT])
    tree: dict[str, list[dict]] = {"images": [], "annotations": []}
    for number, scene in enumerate(islice(scenes(world, "seen", rng), images), start=1):
        name = f"COCO_val2014_{number:012d}.jpg"
        files.write(out / "val2014" / name, jpeg(Image.fromarray(world.render(scene, rng))))
        tree["images"].append({"id": number, "file_name": name, "width": world.size, "height": world.size})
        tree["annotations"].append({"id": number, "image_id": number, "caption": world.caption(scene)})
    files.write(out / "annotations" / "captions_val2014.json", json.dumps(tree))


def jpeg(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=95)
    return data.getvalue()
