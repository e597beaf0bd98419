"""Two systems' pictures for the same prompts, as pairs."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from open_kandinsky.core.errors import UserError
from open_kandinsky.evaluation.gallery import read_manifest, read_picture


@dataclass(frozen=True)
class Shown:
    """One picture of a folder of `generate`."""

    folder: Path
    file: str
    sha256: str

    def read(self) -> bytes:
        """ValueError where it is not the picture any more that the votes were begun on."""
        return read_picture(self.folder, {"file": self.file, "sha256": self.sha256})


@dataclass(frozen=True)
class Pair:
    """The `nth` picture, from 0, that system a and system b drew for a prompt."""

    prompt: str
    nth: int
    a: Shown
    b: Shown

    @property
    def key(self) -> str:
        """What it shows, and nothing of where that lies."""
        return hashlib.sha256(json.dumps([self.prompt, self.nth, self.a.sha256, self.b.sha256]).encode()).hexdigest()


def read_pairs(a: Path, b: Path) -> list[Pair]:
    """Pictures of one prompt are paired by their order. ValueError where a folder is not finished, a picture was
    changed, or one folder lacks what the other shows; the message says what is missing where."""
    if a.resolve() == b.resolve():
        raise UserError(f"a={a} and b={b} are one folder: there is nothing to compare")
    of_a, of_b = pictures(a), pictures(b)
    lacking = [lacks(b, [key for key in of_a if key not in of_b]), lacks(a, [key for key in of_b if key not in of_a])]
    if any(lacking):
        raise UserError(f"a={a} and b={b} were drawn for other prompts: {'; '.join(filter(None, lacking))}")
    return [Pair(prompt, nth, of_a[prompt, nth], of_b[prompt, nth]) for prompt, nth in of_a]


def pictures(folder: Path) -> dict[tuple[str, int], Shown]:
    """(prompt, which of its pictures, from 0) -> picture, each of them read once and found to be as it was drawn."""
    seen: Counter[str] = Counter()
    found = {}
    for line in read_manifest(folder):
        picture = Shown(folder, line["file"], line["sha256"])
        picture.read()
        found[line["prompt"], seen[line["prompt"]]] = picture
        seen[line["prompt"]] += 1
    return found


def lacks(folder: Path, keys: Iterable[tuple[str, int]]) -> str:
    """What to say of missing pictures; nothing where none is."""
    missing = list(keys)
    if not missing:
        return ""
    prompt, nth = missing[0]
    return f"{folder} lacks {len(missing)}, such as picture {nth + 1} of {prompt!r}"
