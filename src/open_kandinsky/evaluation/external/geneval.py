"""GenEval (Ghosh et al. 2023): its folder of pictures, and the accuracies from the results of its program.

Its program needs mmdet 2 and a GPU, and is run in an environment of its own:

    python evaluation/evaluate_images.py FOLDER --outfile results.jsonl --model-path DETECTORS

Formats as read in github.com/djghosh13/geneval (README, evaluation/evaluate_images.py, evaluation/summary_scores.py).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.evaluation.external.pictures import NumberedPicture, complete

EACH = 4  # pictures of each prompt
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
FIELDS = {"filename": str, "tag": str, "prompt": str, "correct": bool, "metadata": str}  # of a line of results

# overall, then the six tasks: the table of GenEval's README
PUBLISHED = {
    "Stable Diffusion v1.5": (0.43, 0.97, 0.38, 0.35, 0.76, 0.04, 0.06),
    "Stable Diffusion v2.1": (0.50, 0.98, 0.51, 0.44, 0.85, 0.07, 0.17),
    "Stable Diffusion XL": (0.55, 0.98, 0.74, 0.39, 0.85, 0.15, 0.23),
    "IF-XL": (0.61, 0.97, 0.74, 0.66, 0.81, 0.13, 0.35),
}


def read_metadata(path: Path) -> list[dict[str, Any]]:
    """The lines of `evaluation_metadata.jsonl`, each with `prompt`, `tag` and what the picture must show.

    ValueError names a line without prompt or tag.
    """
    lines = _read_jsonl(path)
    for number, line in enumerate(lines, 1):
        if not isinstance(line.get("prompt"), str) or line.get("tag") not in TASKS:
            raise UserError(f"{path}, line {number}: needs a prompt, and a tag that is one of {', '.join(TASKS)}")
    return lines


def write(folder: Path, metadata: Sequence[Mapping[str, Any]], pictures: Iterable[NumberedPicture]) -> None:
    """`00000/metadata.jsonl` and `00000/samples/0000.png` to `0003.png` for each line of metadata, in its order.

    All of it or nothing: ValueError for missing or unknown pictures, and for a folder that exists.
    """
    if folder.exists():
        raise UserError(f"{folder} exists, and nothing is overwritten: choose another folder")
    with files.new_folder(folder) as part:
        for index, line in enumerate(metadata):
            (part / f"{index:05d}" / "samples").mkdir(parents=True)
            (part / f"{index:05d}" / "metadata.jsonl").write_text(json.dumps(line) + "\n")
        for picture in complete(pictures, [line["prompt"] for line in metadata], EACH):
            (part / f"{picture.index:05d}" / "samples" / f"{picture.nth:04d}.png").write_bytes(picture.png)


def results(path: Path) -> dict[str, Any]:
    """The numbers of GenEval's own summary of its results.jsonl, as fractions of 1.

    `tasks`: for each task `accuracy`, the share of its pictures that are correct, and `n`, their number. `overall`: the
    unweighted mean of the six accuracies, None where a task has no picture. `images`, `prompts`: the share of all
    pictures that are correct, and of prompts with a correct one. ValueError for a line that is no result, and for a
    picture that is scored twice.
    """
    lines = _read_jsonl(path)
    for number, line in enumerate(lines, 1):
        wrong = [name for name, kind in FIELDS.items() if not isinstance(line.get(name), kind)]
        if wrong or line["tag"] not in TASKS:
            raise UserError(f"{path}, line {number}: no result of GenEval; see {', '.join(wrong) or 'tag'}")
    if len({line["filename"] for line in lines}) < len(lines):
        raise UserError(f"{path} scores a picture more than once: {len(lines)} lines; has it two runs' results?")
    tasks = {task: _accuracy([line["correct"] for line in lines if line["tag"] == task]) for task in TASKS}
    accuracies = [task["accuracy"] for task in tasks.values()]
    solved = {line["metadata"] for line in lines if line["correct"]}
    return {
        "overall": None if None in accuracies else sum(accuracies) / len(accuracies),
        "tasks": tasks,
        "images": _accuracy([line["correct"] for line in lines]),
        "prompts": _accuracy([prompt in solved for prompt in {line["metadata"] for line in lines}]),
    }


def _accuracy(correct: Sequence[bool]) -> dict[str, Any]:
    return {"accuracy": sum(correct) / len(correct) if correct else None, "n": len(correct)}


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    """A JSON object from each line; ValueError for anything else, and for an empty file."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a JSON object on each line ({error})") from error
    if not lines or not all(isinstance(line, dict) for line in lines):
        raise UserError(f"{path}: not a JSON object on each line")
    return lines
