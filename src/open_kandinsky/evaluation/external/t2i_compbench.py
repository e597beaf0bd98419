"""T2I-CompBench (Huang et al. 2023): its folder of pictures, and the means of the scores that its programs leave.

Each category (color, shape, texture, spatial, non-spatial, complex, and 3d-spatial and numeracy of T2I-CompBench++) has
a folder. The programs pin old packages and need an environment for themselves; they read the prompt from a picture's
name, before the first underscore, and its number after it.

Formats as read in github.com/Karine-Huang/T2I-CompBench (Readme, BLIPvqa_eval, UniDet_eval, CLIPScore_eval,
3_in_1_eval).
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.evaluation.external.pictures import NumberedPicture, complete

EACH = 10  # pictures of each prompt; 3-in-1 is written for no other number
LONGEST = 255  # bytes in a file's name
NAMES = "pictures.jsonl"  # beside samples/, where the programs take every file for a picture

# metric -> the folders where its program leaves vqa_result.json; the detector's first release had other names
PLACES = {
    "blip_vqa": ("annotation_blip",),
    "unidet_2d": ("labels/annotation_obj_detection_2d", "labels/annotation_obj_detection", "annotation_obj_detection"),
    "unidet_3d": ("labels/annotation_obj_detection_3d",),
    "unidet_numeracy": ("annotation_num",),
    "clip": ("annotation_clip",),
    "three_in_one": ("annotation_3_in_1",),
}
# category -> the metric that the paper reports for it
REPORTED = {
    "color": "blip_vqa",
    "shape": "blip_vqa",
    "texture": "blip_vqa",
    "spatial": "unidet_2d",
    "3d_spatial": "unidet_3d",
    "numeracy": "unidet_numeracy",
    "non_spatial": "clip",
    "complex": "three_in_one",
}


def read_prompts(path: Path) -> list[str]:
    """The text before the first tab of each line of a list such as `color_val.txt`; ValueError for an empty list."""
    lines = path.read_text(encoding="utf-8").split("\n")
    prompts = [prompt for line in lines if (prompt := line.split("\t")[0].strip())]
    if not prompts:
        raise UserError(f"{path}: holds no prompt")
    return prompts


def write(folder: Path, prompts: Sequence[str], pictures: Iterable[NumberedPicture], *, each: int = EACH) -> None:
    """Write `samples/PROMPT_000000.png`, numbered from 0 through all prompts in their order, `each` for a prompt.

    A name cannot hold every prompt (see `in_a_name`); `pictures.jsonl` has the unchanged prompt of each picture. All of
    it or nothing: ValueError for missing or unknown pictures, for a prompt that fits into no name, and for a folder
    that exists.
    """
    if folder.exists():
        raise UserError(f"{folder} exists, and nothing is overwritten: choose another folder")
    repeated = [prompt for prompt in prompts for _ in range(each)]
    listed = [
        {"question_id": number, "file": file_name(prompt, number), "prompt": prompt}
        for number, prompt in enumerate(repeated)
    ]
    with files.new_folder(folder) as part:
        (part / "samples").mkdir()
        for picture in complete(pictures, prompts, each):
            (part / "samples" / listed[picture.index * each + picture.nth]["file"]).write_bytes(picture.png)
        files.write(part / NAMES, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in listed))


def in_a_name(prompt: str) -> str:
    """The prompt with a space for what the programs or the file system would misread: `_`, `/` and `.png`."""
    return " ".join(prompt.replace("_", " ").replace("/", " ").replace(".png", " ").split())


def file_name(prompt: str, number: int) -> str:
    """The name of picture `number`. ValueError where the prompt is too long for one, or nothing is left of it."""
    name = f"{in_a_name(prompt)}_{number:06d}.png"
    length = len(name.encode())
    if name.startswith("_") or "\0" in name or length > LONGEST:
        limit = f"a name is its words and a number, in at most {LONGEST} bytes; this one has {length}"
        raise UserError(f"the prompt {prompt[:80]!r} cannot be a file's name: {limit}")
    return name


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """For each metric whose program has been run on `folder`: `score`, the mean of its answers, and `n`, their number.

    A score is in [0, 1], CLIP's a cosine. ValueError where no program was run, for answers that are not finite or come
    twice, and where there is not one for each picture of `pictures.jsonl`, which folders of other programs lack.
    """
    listed = folder / NAMES
    n = listed.read_text(encoding="utf-8").count("\n") if listed.is_file() else None
    scores = {}
    for name, places in PLACES.items():
        paths = [file for place in places if (file := folder / place / "vqa_result.json").is_file()]
        if paths:
            scores[name] = score(paths[0], n)
    if not scores:
        raise UserError(f"{folder}: no vqa_result.json in any of {', '.join(sorted(sum(PLACES.values(), ())))}")
    return scores


def score(path: Path, pictures: int | None = None) -> dict[str, Any]:
    """The mean of one vqa_result.json, whose answers are numbers or, as BLIP-VQA writes them, texts of numbers."""
    try:
        answers = [(int(line["question_id"]), float(line["answer"])) for line in json.loads(path.read_text())]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a list of question_id and answer ({error})") from error
    numbers, values = {number for number, _ in answers}, [value for _, value in answers]
    if not answers or len(numbers) < len(answers) or not all(map(math.isfinite, values)):
        raise UserError(f"{path}: its {len(answers)} answers are none, not finite, or several to one picture")
    if pictures is not None and numbers != set(range(pictures)):
        raise UserError(f"{path}: {len(answers):,} answers for {pictures:,} pictures; was it written for others?")
    return {"score": math.fsum(values) / len(values), "n": len(values)}
