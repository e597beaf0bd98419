"""A small set in COCO's shape: JPEGs of odd sizes and captions that are as unruly as COCO's; and its archives."""

import io
import json
import tarfile
import zipfile

import numpy as np
from PIL import Image

from open_kandinsky.data.coco import CocoImage

SHAPES = "circle cross square triangle star ring".split()
COLOURS = "red green blue yellow black white".split()
LONG = "a picture that somebody has described at a length that no text encoder takes, " * 8
ORIENTATION = 0x0112
MODES = {3: "L", 11: "L", 23: "L", 7: "CMYK"}  # of the images that are not RGB, by their place
TURNED = 5  # the place of the image whose EXIF tag says that it lies on its side
EPOCH = (2014, 6, 1, 0, 0, 0)


def make(folder, n_images=40, seed=0):
    """`folder` with annotations/captions_val2014.json and val2014/: the same bytes for the same numbers."""
    random = np.random.default_rng(seed)
    images = [described(at, random) for at in range(n_images)]
    (folder / "val2014").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for at, image in enumerate(images):
        save(folder / "val2014" / image.file_name, at, image, random)
    written(folder, images, captions(images, random), random)
    return folder


def described(at, random):
    """Ids with gaps, as COCO's; sides of 33 to 129 pixels, a few square."""
    width, height = (int(side) for side in random.integers(33, 130, 2))
    id = 42 + 31 * at + int(random.integers(0, 30))
    return CocoImage(id, f"COCO_val2014_{id:012d}.jpg", width, height if at % 8 else width)


def save(path, at, image, random):
    exif = Image.Exif()
    if at == TURNED:
        exif[ORIENTATION] = 6
    photo(image, random).convert(MODES.get(at, "RGB")).save(path, quality=92, exif=exif)


def photo(image, random):
    """Smooth colours with a little noise on them, as in photographs."""
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((image.width, image.height), Image.Resampling.BICUBIC)).astype(float)
    return Image.fromarray((smooth + random.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8))


def captions(images, random):
    """Five of each image, and more of two; some end in a newline, hold one, are long, or are not ASCII."""
    made = []
    for at, image in enumerate(images):
        for _ in range({4: 7, 9: 6}.get(at, 5)):
            colour, shape = random.choice(COLOURS), random.choice(SHAPES)
            text = f"A {colour} {shape} number {len(made)}."
            ends = {
                0: f"{text}\n",
                6: f"  {text} ",
                13: LONG,
                17: f"Ein Stück café, naïve 東京 {text}",
                22: f"A\n{text}",
            }
            made.append({"image_id": image.id, "caption": ends.get(len(made) % 40, text)})
    ids = 100 + 7 * random.permutation(len(made))  # an image's captions do not follow one another
    return [{**caption, "id": int(id)} for caption, id in zip(made, ids, strict=True)]


def written(folder, images, annotations, random):
    """In no order, as in COCO's own file, with keys that nobody reads."""
    entries = [{"license": 1, "coco_url": "", **image._asdict()} for image in images]
    shuffled = ([part[i] for i in random.permutation(len(part))] for part in (entries, annotations))
    tree = dict(zip(("images", "annotations"), shuffled, strict=True))
    text = json.dumps({"info": {"year": 2014}, "licenses": [], **tree})
    (folder / "annotations" / "captions_val2014.json").write_text(text)


def archives(folder, out):
    """The two zips that COCO publishes, with members that we do not need."""
    out.mkdir()
    captions = (folder / "annotations" / "captions_val2014.json").read_bytes()
    pictures = {f"val2014/{path.name}": path.read_bytes() for path in sorted((folder / "val2014").iterdir())}
    other = {"annotations/captions_train2014.json": b"{}", "annotations/instances_val2014.json": b"{}" * 500}
    write_zip(out / "annotations_trainval2014.zip", other | {"annotations/captions_val2014.json": captions})
    write_zip(out / "val2014.zip", {"val2014/": b"", **pictures})
    return out


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as zipped:
        for name, data in members.items():
            zipped.writestr(zipfile.ZipInfo(name, EPOCH), data)


def shards(folder, out, per_shard=16):
    """The same pictures, to the byte, as members of tars, beside the same annotations."""
    (out / "val2014").mkdir(parents=True)
    (out / "captions_val2014.json").write_bytes((folder / "annotations" / "captions_val2014.json").read_bytes())
    files = sorted((folder / "val2014").iterdir())
    for at in range(0, len(files), per_shard):
        with tarfile.open(out / "val2014" / f"{at // per_shard:05d}.tar", "w") as tar:
            for path in files[at : at + per_shard]:
                member = tarfile.TarInfo(path.name)
                member.size = path.stat().st_size
                tar.addfile(member, io.BytesIO(path.read_bytes()))
    return out
