"""A folder of pictures that one request decides: numbered PNGs, begun and gone on with, never written over."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.generation.contact_sheet import samples_png

REQUEST, MANIFEST, SHEET = "request.json", "manifest.jsonl", "sheet.png"
SHOWN, COLUMNS, THUMBNAIL = 64, 8, 256  # on the sheet: pictures, pictures a row, pixels a side at most
# Parameters that are texts, written as they are; the others are written as JSON.
TEXTS = {"prompt", "negative_prompt", "negative_decoder_prompt", "mode", "sampler", "prior_sampler", "dtype"}
TEXTS |= {"image", "mask"}
TEXTS_BEFORE = {"prompt", "negative_prompt", "mode", "sampler"}  # of versions before 0.2, without a batch_size
DECIDE_BITS = ("batch_size", "threads")  # in requests since version 0.2


@dataclass(frozen=True)
class Picture:
    """One picture asked for: its number, what it shows, and its seed."""

    index: int
    prompt: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.index:05d}.png"


class Gallery:
    """ValueError where the folder holds another request's pictures, or anything else. Nothing is written before `add`.

    The request is written down with the first pictures, so that a mistake found while drawing leaves no folder.
    """

    def __init__(self, folder: Path, request: Mapping[str, Any], pictures: Sequence[Picture]) -> None:
        self.folder, self.pictures = folder, pictures
        self.request: dict[str, Any] = json.loads(json.dumps(request))
        begun = folder / REQUEST
        if begun.is_file():
            refuse_another(folder, json.loads(begun.read_text(encoding="utf-8")), self.request)
        elif not files.is_empty(folder):
            raise UserError(f"out={folder} is not empty and holds no pictures of ours: choose another folder")

    def missing(self) -> list[Picture]:
        return [picture for picture in self.pictures if not (self.folder / picture.name).is_file()]

    def batches(self, size: int) -> list[list[Picture]]:
        """Of so many pictures by their numbers, those in which one is missing: what a picture is drawn together with,
        which decides its last bits, is the same wherever an earlier process was stopped.
        """
        missing, every = set(self.missing()), range(0, len(self.pictures), size)
        batches = [list(self.pictures[start : start + size]) for start in every]
        return [batch for batch in batches if missing.intersection(batch)]

    def add(self, pictures: Sequence[Picture], images: Sequence[Image.Image], parameters: Mapping[str, Any]) -> None:
        """Each picture whole or not at all, with what it was made by in its text; one that is there stays."""
        if not (self.folder / REQUEST).is_file():
            files.write(self.folder / REQUEST, json.dumps(self.request, indent=1, ensure_ascii=False))
        shared = {name: value for name, value in self.request.items() if name not in ("pictures", "images_sha256")}
        for picture, image in zip(pictures, images, strict=True):
            if (self.folder / picture.name).is_file():
                continue
            mine = {"prompt": picture.prompt, "seed": picture.seed, **shared, **parameters}
            files.write(self.folder / picture.name, png(image, mine))

    def finish(self) -> None:
        """The sheet of the first pictures, and last the manifest: a line a picture, from the pictures' own texts."""
        first = [picture for picture in self.pictures[:SHOWN]]
        samples_png(
            self.folder / SHEET,
            [thumbnail(self.folder / picture.name) for picture in first],
            [picture.prompt or "(no prompt)" for picture in first],
            columns=min(COLUMNS, len(first)),
        )
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines()]
        files.write(self.folder / MANIFEST, "".join(lines))

    def lines(self) -> Iterator[dict[str, Any]]:
        for picture in self.pictures:
            data = (self.folder / picture.name).read_bytes()
            yield {"file": picture.name, "sha256": hashlib.sha256(data).hexdigest(), **read_parameters(data)}


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """A line for each picture of a folder that is finished; ValueError where it is not, or is none of ours."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} has no {MANIFEST}: it is no folder of `generate`, or one that is not finished")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def read_picture(folder: Path, line: Mapping[str, Any]) -> bytes:
    """The file that a line of the manifest names; ValueError where it is not that picture any more."""
    path = folder / line["file"]
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != line["sha256"]:
        raise UserError(f"{path} is not the picture that {MANIFEST} lists: it was changed since")
    return data


def refuse_another(folder: Path, begun: dict[str, Any], wanted: dict[str, Any]) -> None:
    names = [name for name in begun | wanted if begun.get(name) != wanted.get(name)]
    differing = [told(name, begun, wanted) for name in names if name in begun or name not in DECIDE_BITS]
    if differing:
        raise UserError(
            f"out={folder} was begun by another request, which differs in {', '.join(differing)}: choose another "
            f"folder, or repeat that request to go on with it ({folder / REQUEST} says what it was)"
        )


def told(name: str, begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """A parameter's name, and both of its values where they are short."""
    before, now = (json.dumps(request.get(name)) for request in (begun, wanted))
    return f"{name} ({before}, now {now})" if len(before + now) < 80 else name


def begun_with(folder: Path) -> dict[str, Any]:
    """The request that a folder was begun by; empty where it was not."""
    path = folder / REQUEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def png(image: Image.Image, parameters: Mapping[str, Any]) -> bytes:
    text, data = PngInfo(), io.BytesIO()
    for name, value in parameters.items():
        text.add_text(name, value if name in TEXTS else json.dumps(value))
    image.save(data, format="png", pnginfo=text)
    return data.getvalue()


def read_parameters(data: bytes) -> dict[str, Any]:
    """What `png` wrote beside the picture."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image.load()
        text = {str(name): str(value) for name, value in image.info.items()}
    texts = TEXTS if "batch_size" in text else TEXTS_BEFORE
    return {name: value if name in texts else json.loads(value) for name, value in text.items()}


def thumbnail(path: Path) -> Image.Image:
    with Image.open(path, formats=["PNG"]) as image:
        image.load()
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return image.convert("RGB")
