"""Pictures on their way into another project's folder: which prompt each was drawn for, and that all are there."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from open_kandinsky.core.errors import UserError
from open_kandinsky.generation.gallery import read_manifest, read_picture

PNG = b"\x89PNG\r\n\x1a\n"
NAMED = 3  # how many of the missing are named


class NumberedPicture(NamedTuple):
    """The `nth` picture, from 0, of prompt number `index` of a list, as the bytes of a PNG file."""

    index: int
    prompt: str
    nth: int
    png: bytes


def complete(pictures: Iterable[NumberedPicture], prompts: Sequence[str], each: int) -> Iterator[NumberedPicture]:
    """The same pictures, in any order, `each` of them for every prompt.

    ValueError at the first that nobody asked for, that comes twice or is no PNG, and at the end for what is missing.
    """
    missing = dict.fromkeys((index, nth) for index in range(len(prompts)) for nth in range(each))
    for picture in pictures:
        key = picture.index, picture.nth
        if key not in missing:
            asked = f"{len(prompts)} prompts with {each} pictures each"
            raise UserError(f"{told(*key, picture.prompt)} came twice or was not asked for: there are {asked}")
        if picture.prompt != prompts[picture.index]:
            raise UserError(f"{told(*key, picture.prompt)}: the prompt is {prompts[picture.index]!r} in the list")
        if not picture.png.startswith(PNG):
            raise UserError(f"{told(*key, picture.prompt)} is no PNG; it starts with {picture.png[:8]!r}")
        del missing[key]
        yield picture
    if missing:
        named = "; ".join(told(index, nth, prompts[index]) for index, nth in list(missing)[:NAMED])
        raise UserError(f"{len(missing):,} of {len(prompts) * each:,} pictures are missing, such as {named}")


def told(index: int, nth: int, prompt: str) -> str:
    return f"picture {nth} of prompt {index} ({prompt!r})"


def of_gallery(folder: Path, prompts: Sequence[str], each: int) -> Iterator[NumberedPicture]:
    """What `generate` drew, `each` for every prompt: the pictures of a prompt in the order of the manifest.

    ValueError where the folder is not finished, a picture was changed, or one shows none of the prompts.
    """
    places = {prompt: [i for i, other in enumerate(prompts) if other == prompt] for prompt in prompts}
    seen: Counter[str] = Counter()
    for line in read_manifest(folder):
        prompt = line["prompt"]
        turn, nth = divmod(seen[prompt], each)
        if turn >= len(places.get(prompt, ())):
            asked = each * len(places.get(prompt, ()))
            raise UserError(f"{folder / line['file']} shows {prompt!r}, of which {asked} pictures were asked for")
        seen[prompt] += 1
        yield NumberedPicture(places[prompt][turn], prompt, nth, read_picture(folder, line))
