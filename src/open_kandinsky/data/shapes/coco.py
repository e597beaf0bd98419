"""Some toy pictures in COCO's layout, so that COCO's evaluation can be seen to run where there is no COCO."""

import io
import json
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from open_kandinsky.core import files
from open_kandinsky.data.shapes.world import World, scenes

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
