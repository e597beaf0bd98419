"""Where the weights of a system lie: which folder holds which part, and in whose form."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from open_kandinsky.core.errors import UserError
from open_kandinsky.weights import native
from open_kandinsky.weights.part import PARTS, REST, TEXT, Part

Source = str | Path | Mapping[str, str | Path]
Find = Callable[[str, Path], Part | None]  # one form's way of finding a part below a folder
# A folder named for one part alone may be a pipeline, with others beside it.
COMPANIONS = {"clip": ("prior",), "movq": ("decoder",), TEXT: ("decoder",)}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.yaml"]


def parts(source: Source, finds: Sequence[Find]) -> dict[str, Part]:
    """Every part of a system, the text encoder only where there is one.

    `source` is a folder, or a folder for each of some parts, `rest` being the others'. ValueError where one is missing.
    """
    given = folders(source)
    found = {name: wanted(name, given, finds) for name in PARTS}
    text = among(TEXT, given, finds)
    return found if text is None else {**found, TEXT: text}


def part(name: str, source: Source, finds: Sequence[Find]) -> Part:
    """One part alone. ValueError where it is missing."""
    return wanted(name, folders(source), finds)


def wanted(name: str, given: Mapping[str, Path], finds: Sequence[Find]) -> Part:
    found = among(name, given, finds)
    if found is None:
        raise UserError(not_found(name, given))
    return found


def among(name: str, given: Mapping[str, Path], finds: Sequence[Find]) -> Part | None:
    """The first find in the folders that may hold a part, best folder first."""
    each = (find(name, given[key]) for key in asked(name, given) for find in finds)
    return next((found for found in each if found is not None), None)


def folders(source: Source) -> dict[str, Path]:
    """By the part that a folder is for. ValueError for a name that is no part."""
    given = dict(source) if isinstance(source, Mapping) else {REST: source}
    unknown = set(given) - {REST, *PARTS, TEXT}
    if unknown:
        raise UserError(
            f"weights: no part is called {sorted(unknown)[0]!r}; the parts are {', '.join(PARTS)}, text, and {REST}"
        )
    return {part: fetched(folder) for part, folder in given.items()}


def asked(part: str, given: Mapping[str, Path]) -> list[str]:
    """Under which names a part is looked for, best first: a folder of its own is the only one."""
    return [part] if part in given else [name for name in (REST, *COMPANIONS.get(part, ())) if name in given]


def not_found(part: str, given: Mapping[str, Path]) -> str:
    root = given.get(part) or (given.get(REST, Path(".")) / part)
    for name in (part, REST):
        if name in given and (other := native.held(given[name])):
            wanted = f"{{rest: SYSTEM, {other}: {given[name]}}}" if name == REST else f"a run of stage={part}"
            raise UserError(f"weights: {given[name]} holds weights of a {other}, and a {part} is wanted: give {wanted}")
    there = sorted(path.name for path in root.iterdir())[:6] if root.is_dir() else "no such folder"
    known = "(or folders of diffusers' Kandinsky 2.1 or 2.2, prior/ and decoder/, or original 2.1 files)"
    told = f"the {part} is looked for in {root}, which should hold config.yaml and weights.safetensors {known}"
    return f"weights: {told}; found: {there}. A run that was stopped has none: resume it"


def fetched(folder: str | Path) -> Path:
    """A folder as it is, or what the hub has by that name. ValueError where there is neither."""
    path = Path(folder)
    if path.exists() or not HUB_ID.fullmatch(str(folder)):
        return path
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        told = f"{folder}: no such folder; to fetch it from the Hugging Face hub, pip install huggingface_hub"
        raise UserError(told) from error
    try:
        return Path(snapshot_download(str(folder), allow_patterns=HUB_FILES))
    except Exception as error:  # of many kinds, one for each way to be without a network
        told = f"{folder}: no such folder, and the Hugging Face hub did not give it ({type(error).__name__})"
        raise UserError(f"{told}; check the spelling, or fetch it where there is a network") from error
