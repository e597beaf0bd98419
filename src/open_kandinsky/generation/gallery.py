"""The folder that `generate` writes: numbered PNGs of one request, which a later process may complete.

A folder holds request.json, the pictures with their parameters as PNG text, sheet.png, and, once all of it is there,
manifest.jsonl. Nothing is written twice, and another request's folder is refused.
"""

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
from open_kandinsky.generation.contact_sheet import contact_sheet

REQUEST, MANIFEST, SHEET = "request.json", "manifest.jsonl", "sheet.png"
SHOWN, COLUMNS, THUMBNAIL = 64, 8, 256  # on the sheet: pictures, pictures a row, pixels a side at most
# Parameters that are texts, written as they are; the others are written as JSON.
TEXTS_BEFORE = {"prompt", "negative_prompt", "mode", "sampler"}  # of versions before 0.2, without a batch_size
TEXTS = TEXTS_BEFORE | {"negative_decoder_prompt", "prior_sampler", "dtype", "image", "mask"}
DECIDE_BITS = ("batch_size", "threads")  # in requests since version 0.2


@dataclass(frozen=True)
class Picture:
    """One picture of a request: its number, what it shows, and its seed."""

    index: int
    prompt: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.index:05d}.png"


class Gallery:
    """A request's pictures in a folder. UserError where the folder holds another request's, or anything else.

    The request is written with the first pictures, so that a mistake found while drawing leaves no folder.
    """

    def __init__(self, folder: Path, request: Mapping[str, Any], pictures: Sequence[Picture]) -> None:
        self.folder, self.pictures = folder, pictures
        self.request: dict[str, Any] = json.loads(json.dumps(request))
        if (folder / REQUEST).is_file():
            self.refuse_another(begun_with(folder))
        elif not files.is_empty(folder):
            raise UserError(f"out={folder} is not empty and holds no pictures of ours: choose another folder")

    def refuse_another(self, begun: Mapping[str, Any]) -> None:
        """UserError, with the parameters that differ, where the folder's request is another than this one."""
        differing = []
        for name in dict.fromkeys([*begun, *self.request]):
            if begun.get(name) != self.request.get(name) and (name in begun or name not in DECIDE_BITS):
                before, now = (json.dumps(request.get(name)) for request in (begun, self.request))
                differing.append(f"{name} ({before}, now {now})" if len(before + now) < 80 else name)
        if differing:
            raise UserError(
                f"out={self.folder} was begun by another request, which differs in {', '.join(differing)}: choose "
                f"another folder, or repeat that request to go on with it ({self.folder / REQUEST} says what it was)"
            )

    def missing(self) -> list[Picture]:
        return [picture for picture in self.pictures if not (self.folder / picture.name).is_file()]

    def batches(self, size: int) -> list[list[Picture]]:
        """Batches of `size` pictures by their numbers, of which at least one picture is missing.

        What a picture is drawn together with decides its last bits: so batches are the same wherever an earlier
        process was stopped.
        """
        missing, starts = set(self.missing()), range(0, len(self.pictures), size)
        batches = [list(self.pictures[start : start + size]) for start in starts]
        return [batch for batch in batches if missing.intersection(batch)]

    def add(self, pictures: Sequence[Picture], images: Sequence[Image.Image], parameters: Mapping[str, Any]) -> None:
        """Write each picture that is not there, whole or not at all, with its parameters in the PNG's text."""
        if not (self.folder / REQUEST).is_file():
            files.write(self.folder / REQUEST, json.dumps(self.request, indent=1, ensure_ascii=False))
        shared = {name: value for name, value in self.request.items() if name not in ("pictures", "images_sha256")}
        for picture, image in zip(pictures, images, strict=True):
            if not (self.folder / picture.name).is_file():
                text = {"prompt": picture.prompt, "seed": picture.seed, **shared, **parameters}
                files.write(self.folder / picture.name, png(image, text))

    def finish(self) -> None:
        """Write the sheet of the first pictures, and last the manifest: a line a picture, from the PNGs' own texts."""
        first = self.pictures[:SHOWN]
        thumbnails = [thumbnail(self.folder / picture.name) for picture in first]
        captions = [picture.prompt or "(no prompt)" for picture in first]
        files.write(self.folder / SHEET, contact_sheet(thumbnails, captions, columns=min(COLUMNS, len(first))))
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines()]
        files.write(self.folder / MANIFEST, "".join(lines))

    def lines(self) -> Iterator[dict[str, Any]]:
        """The manifest's lines: file, its SHA-256, and the picture's parameters."""
        for picture in self.pictures:
            data = (self.folder / picture.name).read_bytes()
            yield {"file": picture.name, "sha256": hashlib.sha256(data).hexdigest(), **read_parameters(data)}


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """A line for each picture of a finished folder; UserError where it is not finished, or is not of `generate`."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} has no {MANIFEST}: it is no folder of `generate`, or one that is not finished")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def read_picture(folder: Path, line: Mapping[str, Any]) -> bytes:
    """The PNG that a line of the manifest names; UserError where the file has changed since."""
    path = folder / line["file"]
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != line["sha256"]:
        raise UserError(f"{path} is not the picture that {MANIFEST} lists: it was changed since")
    return data


def begun_with(folder: Path) -> dict[str, Any]:
    """The request that a folder was begun by; empty where it was not."""
    path = folder / REQUEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def png(image: Image.Image, parameters: Mapping[str, Any]) -> bytes:
    """A picture as PNG, with its parameters as text."""
    text, data = PngInfo(), io.BytesIO()
    for name, value in parameters.items():
        text.add_text(name, value if name in TEXTS else json.dumps(value))
    image.save(data, format="png", pnginfo=text)
    return data.getvalue()


def read_parameters(data: bytes) -> dict[str, Any]:
    """The parameters that `png` wrote into a picture's text."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image.load()
        text = {str(name): str(value) for name, value in image.info.items()}
    texts = TEXTS if "batch_size" in text else TEXTS_BEFORE
    return {name: value if name in texts else json.loads(value) for name, value in text.items()}


def thumbnail(path: Path) -> Image.Image:
    """A PNG file as RGB, at most THUMBNAIL pixels a side."""
    with Image.open(path, formats=["PNG"]) as image:
        image.load()
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return image.convert("RGB")
