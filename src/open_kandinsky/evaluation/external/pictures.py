"""Numbered pictures for another project's folder, and the check that every prompt has all of its pictures."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from open_kandinsky.core.errors import UserError
from open_kandinsky.generation.gallery import read_manifest, read_picture

PNG = b"\x89PNG\r\n\x1a\n"
SHOWN = 3  # how many of the missing pictures a message names


class NumberedPicture(NamedTuple):
    """Picture `nth`, from 0, of prompt number `index` of a list, as the bytes of a PNG file."""

    index: int
    prompt: str
    nth: int
    png: bytes

    def __str__(self) -> str:
        return f"picture {self.nth} of prompt {self.index} ({self.prompt!r})"


def complete(pictures: Iterable[NumberedPicture], prompts: Sequence[str], each: int) -> Iterator[NumberedPicture]:
    """Yield the same pictures, in any order, `each` of them for every prompt.

    ValueError at the first picture that is not of the list, comes twice or is no PNG, and at the end for missing ones.
    """
    missing = dict.fromkeys((index, nth) for index in range(len(prompts)) for nth in range(each))
    for picture in pictures:
        key = picture.index, picture.nth
        if key not in missing:
            number = f"{len(prompts)} prompts with {each} pictures each"
            raise UserError(f"{picture} came twice or was not asked for: there are {number}")
        if picture.prompt != prompts[picture.index]:
            raise UserError(f"{picture}: the prompt is {prompts[picture.index]!r} in the list")
        if not picture.png.startswith(PNG):
            raise UserError(f"{picture} is no PNG; it starts with {picture.png[:8]!r}")
        del missing[key]
        yield picture
    if missing:
        some = "; ".join(str(NumberedPicture(i, prompts[i], nth, b"")) for i, nth in list(missing)[:SHOWN])
        raise UserError(f"{len(missing):,} of {len(prompts) * each:,} pictures are missing, such as {some}")


def of_gallery(folder: Path, prompts: Sequence[str], each: int) -> Iterator[NumberedPicture]:
    """The pictures in a folder of `generate`, `each` for every prompt, in the order of its manifest.

    ValueError where the folder is not finished, a picture was changed, or one shows none of the prompts.
    """
    indices = {prompt: [i for i, other in enumerate(prompts) if other == prompt] for prompt in prompts}
    counts: Counter[str] = Counter()
    for line in read_manifest(folder):
        prompt = line["prompt"]
        repeat, nth = divmod(counts[prompt], each)
        if repeat >= len(indices.get(prompt, ())):
            wanted = each * len(indices.get(prompt, ()))
            raise UserError(f"{folder / line['file']} shows {prompt!r}, of which {wanted} pictures were asked for")
        counts[prompt] += 1
        yield NumberedPicture(indices[prompt][repeat], prompt, nth, read_picture(folder, line))
