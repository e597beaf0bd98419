"""Reads the inputs of `generate`: prompts from a file, pictures by their path."""

import csv
import io
import os
from pathlib import Path

from PIL import Image

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.transforms import open_image

PICTURE_FILES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")

Prompts = list[tuple[str, int | None]]  # each with its seed, if the file has seeds


def read_prompts(path: Path) -> Prompts:
    """The columns `prompt` and, if there, `seed` of a CSV; the lines of any other file, but for blank ones.

    Raises ValueError for a file that is missing, is no UTF-8 text or holds no prompt.
    """
    if not path.is_file():
        raise UserError(f"prompts_file={path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"prompts_file={path}: not a text in UTF-8 ({error})") from error
    lines: Prompts = [(line.strip(), None) for line in text.splitlines() if line.strip()]
    prompts = rows(text, path) if path.suffix.lower() == ".csv" else lines
    if not prompts:
        raise UserError(f"prompts_file={path}: holds no prompt")
    return prompts


def rows(text: str, path: Path) -> Prompts:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = reader.fieldnames or []
    if "prompt" not in columns:
        raise UserError(f"prompts_file={path}: needs a column 'prompt'; it has {', '.join(columns) or 'none'}")
    prompts: Prompts = []
    for row in reader:
        prompt, seed = ((row.get(name) or "").strip() for name in ("prompt", "seed"))
        if not prompt:
            raise UserError(f"prompts_file={path}, line {reader.line_num}: no prompt")
        if seed and not seed.isdecimal():
            raise UserError(f"prompts_file={path}, line {reader.line_num}: seed {seed!r} is no whole number")
        prompts.append((prompt, int(seed) if seed else None))
    return prompts


def is_picture(part: str) -> bool:
    """Whether a part of a mix is a file. ValueError for the name of a picture that does not exist."""
    if part.lower().endswith(PICTURE_FILES) and not os.path.isfile(part):
        raise UserError(f"no such picture: {part!r}")
    return os.path.isfile(part)


def opened(path: str) -> Image.Image:
    """The picture in a file, upright and in RGB. ValueError, which names the file, where there is none."""
    if not os.path.isfile(path):
        raise UserError(f"no such picture: {path!r}")
    try:
        return open_image(Path(path).read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def picture_or_text(part: str) -> str | Image.Image:
    """The picture in a file of that name, if there is one, else the text itself."""
    return opened(part) if is_picture(part) else part
