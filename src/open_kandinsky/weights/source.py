"""Finds the parts of a system: which folder holds each part, in which form."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from open_kandinsky.core.errors import UserError
from open_kandinsky.weights import native
from open_kandinsky.weights.part import PARTS, REST, TEXT, Part

Source = str | Path | Mapping[str, str | Path]
Find = Callable[[str, Path], Part | None]  # a form of weights: (part, folder) -> the part, if it is there
# Part -> other parts whose folder may hold it too, being a whole pipeline of diffusers'.
COMPANIONS = {"clip": ("prior",), "movq": ("decoder",), TEXT: ("decoder",)}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.yaml"]


def parts(source: Source, finds: Sequence[Find]) -> dict[str, Part]:
    """Every part of a system, the text encoder only where there is one.

    `source` is a folder, or a mapping from parts to folders, `rest` being all others'. ValueError for a missing part.
    """
    paths = folders(source)
    required = {name: part(name, paths, finds) for name in PARTS}
    text = search(TEXT, paths, finds)
    return required if text is None else {**required, TEXT: text}


def part(name: str, source: Source, finds: Sequence[Find]) -> Part:
    """One part. ValueError where it is missing."""
    paths = folders(source)
    result = search(name, paths, finds)
    if result is None:
        raise UserError(not_found(name, paths))
    return result


def search(name: str, paths: Mapping[str, Path], finds: Sequence[Find]) -> Part | None:
    """The first find of a part: in the folder given for it or, without one, in `rest` and then its companions'."""
    keys = [name] if name in paths else [key for key in (REST, *COMPANIONS.get(name, ())) if key in paths]
    each = (find(name, paths[key]) for key in keys for find in finds)
    return next((result for result in each if result is not None), None)


def folders(source: Source) -> dict[str, Path]:
    """Part -> folder, downloaded if need be. ValueError for a name that is no part."""
    by_part = dict(source) if isinstance(source, Mapping) else {REST: source}
    if unknown := sorted(set(by_part) - {REST, *PARTS, TEXT}):
        raise UserError(
            f"weights: no part is called {unknown[0]!r}; the parts are {', '.join(PARTS)}, text, and {REST}"
        )
    return {part: fetched(folder) for part, folder in by_part.items()}


def not_found(part: str, paths: Mapping[str, Path]) -> str:
    """The message about a missing part: where it was searched, and what is there."""
    root = paths.get(part) or (paths.get(REST, Path(".")) / part)
    for name in (part, REST):
        if name in paths and (other := native.name_of_part(paths[name])):
            remedy = f"{{rest: SYSTEM, {other}: {paths[name]}}}" if name == REST else f"a run of stage={part}"
            raise UserError(f"weights: {paths[name]} holds weights of a {other}, and a {part} is wanted: give {remedy}")
    there = sorted(path.name for path in root.iterdir())[:6] if root.is_dir() else "no such folder"
    return (
        f"weights: the {part} is looked for in {root}, which should hold config.yaml and weights.safetensors (or "
        "folders of diffusers' Kandinsky 2.1 or 2.2, prior/ and decoder/, or original 2.1 files); "
        f"found: {there}. A run that was stopped has none: resume it"
    )


def fetched(folder: str | Path) -> Path:
    """A folder as it is, or a download of the hub's repository of that name. ValueError where there is neither."""
    path = Path(folder)
    if path.exists() or not HUB_ID.fullmatch(str(folder)):
        return path
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        missing = f"{folder}: no such folder; to fetch it from the Hugging Face hub, pip install huggingface_hub"
        raise UserError(missing) from error
    try:
        return Path(snapshot_download(str(folder), allow_patterns=HUB_FILES))
    except Exception as error:  # of many kinds, one for each way to be without a network
        missing = f"{folder}: no such folder, and the Hugging Face hub did not give it ({type(error).__name__})"
        raise UserError(f"{missing}; check the spelling, or fetch it where there is a network") from error
