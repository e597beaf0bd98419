"""What is asked for: a request, which is the values of conf/generate.yaml by their names, and its pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.prompts import Prompts, opened, read_prompts
from open_kandinsky.pipeline import Pipeline
from open_kandinsky.pipeline.inpainting import MAX_SIDE, check_sides

SEEDS = 2**32

Request = Mapping[str, Any]
Options = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """One picture: what it shows in words, its seed, and what else it alone is made from."""

    prompt: str
    seed: int
    made_from: dict[str, Any] = field(default_factory=dict)  # paths of image and mask; margins; where between two


Draw = Callable[[Pipeline, Request, Sequence[Asked], Options], list[Image.Image]]


@dataclass(frozen=True)
class Mode:
    """What a mode reads of a request, what that asks for, and how some of it is drawn."""

    needs: str
    sources: tuple[str, ...]
    options: tuple[str, ...]
    asked: Callable[[Request], list[Asked]]
    draw: Draw

    @property
    def reads(self) -> tuple[str, ...]:
        return self.sources + self.options


def texts_of(request: Request) -> Prompts:
    if request["prompts_file"] is not None and request["prompts"]:
        raise UserError("prompts and prompts_file are both given: choose one")
    if request["prompts_file"] is not None:
        return read_prompts(Path(request["prompts_file"]))
    return [(prompt, None) for prompt in strings(request["prompts"])]


def strings(given: Any) -> list[str]:
    """One or several, as typed."""
    return [str(one) for one in ([given] if isinstance(given, str) else given)]


def each(request: Request, items: Sequence[tuple[str, int | None, dict[str, Any]]]) -> list[Asked]:
    """`count` pictures of each in a row: picture i has seed + i, or where an item has its own seed, from that on."""
    counted = [(*item, k) for item in items for k in range(request["count"])]
    return [
        Asked(prompt, seeded(request["seed"] + i if own is None else own + k), made_from)
        for i, (prompt, own, made_from, k) in enumerate(counted)
    ]


def seeded(seed: int) -> int:
    if not 0 <= seed < SEEDS:
        raise UserError(f"seed {seed}: seeds are from 0 to 2^32 - 1, that of the last picture too")
    return seed


def seeds(asked: Sequence[Asked]) -> list[int]:
    return [one.seed for one in asked]


def prompts(asked: Sequence[Asked]) -> list[str]:
    return [one.prompt for one in asked]


def looked_at(path: str, largest: int | None = None) -> Image.Image:
    """The picture in a file; ValueError names the file where it is none, or of a size that cannot be used."""
    image = opened(path)
    try:
        check_sides(*image.size, largest)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return image


def editable(path: str) -> Image.Image:
    """The same of a picture that is to be drawn at its own size."""
    return looked_at(path, MAX_SIDE)
