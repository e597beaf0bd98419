"""What a person wants drawn: prompts from a file, pictures by their path."""

import csv
import io
import os
from pathlib import Path

from PIL import Image

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.transforms import open_image

PICTURE_FILES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")

Prompts = list[tuple[str, int | None]]  # what to draw, and its seed where one was given


def read_prompts(path: Path) -> Prompts:
    """Of a CSV the columns `prompt` and, if there, `seed`; of any other file each line that is not blank.

    Raises ValueError for a file that is missing, is no UTF-8 text or holds no prompt.
    """
    if not path.is_file():
        raise UserError(f"prompts_file={path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"prompts_file={path}: not a text in UTF-8 ({error})") from error
    prompts = rows(text, path) if path.suffix.lower() == ".csv" else lines(text)
    if not prompts:
        raise UserError(f"prompts_file={path}: holds no prompt")
    return prompts


def lines(text: str) -> Prompts:
    return [(line.strip(), None) for line in text.splitlines() if line.strip()]


def rows(text: str, path: Path) -> Prompts:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = reader.fieldnames or []
    if "prompt" not in columns:
        raise UserError(f"prompts_file={path}: needs a column 'prompt'; it has {', '.join(columns) or 'none'}")
    return [((row["prompt"] or "").strip(), seed_of(row, f"{path}, line {reader.line_num}")) for row in reader]


def seed_of(row: dict[str, str | None], where: str) -> int | None:
    seed = (row.get("seed") or "").strip()
    if not (row["prompt"] or "").strip():
        raise UserError(f"prompts_file={where}: no prompt")
    if seed and not seed.isdecimal():
        raise UserError(f"prompts_file={where}: seed {seed!r} is no whole number")
    return int(seed) if seed else None


def is_picture(part: str) -> bool:
    """Whether a part of a mix is a file; ValueError where it is called like a picture and there is none."""
    if part.lower().endswith(PICTURE_FILES) and not os.path.isfile(part):
        raise UserError(f"no such picture: {part!r}")
    return os.path.isfile(part)


def opened(path: str) -> Image.Image:
    """The upright RGB picture; ValueError names the file."""
    if not os.path.isfile(path):
        raise UserError(f"no such picture: {path!r}")
    try:
        return open_image(Path(path).read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def part_of(part: str) -> str | Image.Image:
    """A picture where there is one of that name, else the text itself."""
    return opened(part) if is_picture(part) else part
