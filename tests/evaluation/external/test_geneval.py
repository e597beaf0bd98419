"""GenEval's folder is the one its README shows, and its results add up as its own summary adds them."""

import json
import re

import pytest
from fixtures.layouts import drawn, files

from open_kandinsky.evaluation.external import geneval

METADATA = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "position",
        "include": [{"class": "cow", "count": 1}, {"class": "cup", "count": 1, "position": ["left of", 0]}],
        "prompt": "a photo of a cup left of a cow",
    },
]
PROMPTS = [line["prompt"] for line in METADATA]


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_folder(tmp_path):
    metadata = geneval.read_metadata(written(tmp_path / "evaluation_metadata.jsonl", METADATA))
    pictures = drawn(PROMPTS, 4)
    geneval.write(tmp_path / "out", metadata, reversed(pictures))
    assert files(tmp_path / "out") == [
        f"{i:05d}/{name}" for i in range(2) for name in ["metadata.jsonl", *(f"samples/{n:04d}.png" for n in range(4))]
    ]
    for picture in pictures:
        sample = tmp_path / "out" / f"{picture.index:05d}" / "samples" / f"{picture.nth:04d}.png"
        assert sample.read_bytes() == picture.png


def test_its_program_finds_in_it_what_was_asked(tmp_path):
    """Read as evaluate_images.py reads it: folders of digits, one JSON object, samples of digits."""
    geneval.write(tmp_path / "out", METADATA, drawn(PROMPTS, 4))
    folders = sorted(path for path in (tmp_path / "out").iterdir() if path.name.isdigit())
    assert [json.load((folder / "metadata.jsonl").open()) for folder in folders] == METADATA
    assert all(re.match(r"\d+\.png", sample.name) for folder in folders for sample in (folder / "samples").iterdir())


def test_nothing_is_left_of_a_folder_that_lacks_pictures(tmp_path):
    with pytest.raises(ValueError, match="1 of 8 pictures are missing"):
        geneval.write(tmp_path / "out", METADATA, drawn(PROMPTS, 4)[:-1])
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_written_over(tmp_path):
    geneval.write(tmp_path / "out", METADATA, drawn(PROMPTS, 4))
    with pytest.raises(ValueError, match="nothing is overwritten"):
        geneval.write(tmp_path / "out", METADATA, drawn(PROMPTS, 4))


@pytest.mark.parametrize("line", [{"tag": "color", "prompt": "a"}, {"tag": "colors"}])
def test_other_metadata_is_refused(tmp_path, line):
    with pytest.raises(ValueError, match="line 3: needs a prompt"):
        geneval.read_metadata(written(tmp_path / "metadata.jsonl", [*METADATA, line]))


@pytest.mark.parametrize("text", ["", "[1]\n", '{"tag": \n'])
def test_what_is_no_jsonl_is_refused(tmp_path, text):
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="not a JSON object on each line"):
        geneval.results(path)


def scored(correct):
    """Lines as pandas writes them; `correct` is task -> a list, for each prompt, of which pictures are right."""
    for task, prompts in correct.items():
        for i, pictures in enumerate(prompts):
            metadata = json.dumps({"tag": task, "prompt": f"{task} {i}"})
            for n, right in enumerate(pictures):
                name = f"out/{task}{i}/samples/{n:04d}.png"
                line = {"filename": name, "tag": task, "prompt": f"{task} {i}", "correct": right, "reason": ""}
                yield line | {"metadata": metadata, "details": "{}"}


def test_results(tmp_path):
    """A task with many pictures weighs as much as one with few."""
    of = {task: [[True] * 4] for task in geneval.TASKS}
    of |= {"counting": [[True, False, False, False]] * 3, "color_attr": [[False] * 4, [False, True, False, True]]}
    got = geneval.results(written(tmp_path / "results.jsonl", scored(of)))
    assert got["tasks"]["counting"] == {"accuracy": 0.25, "n": 12}
    assert got["tasks"]["color_attr"] == {"accuracy": 0.25, "n": 8}
    assert got["overall"] == pytest.approx((4 + 0.25 + 0.25) / 6)
    assert got["images"] == {"accuracy": (16 + 3 + 2) / 36, "n": 36}
    assert got["prompts"] == {"accuracy": 8 / 9, "n": 9}


def test_there_is_no_overall_without_all_tasks(tmp_path):
    got = geneval.results(written(tmp_path / "results.jsonl", scored({"colors": [[True, False, True, True]]})))
    assert got["overall"] is None
    assert got["tasks"]["colors"]["accuracy"] == 0.75 and got["tasks"]["position"] == {"accuracy": None, "n": 0}


def test_two_runs_in_one_file_are_refused(tmp_path):
    lines = list(scored({"colors": [[True] * 4]}))
    with pytest.raises(ValueError, match="scores a picture more than once: 8 lines"):
        geneval.results(written(tmp_path / "results.jsonl", lines * 2))
    with pytest.raises(ValueError, match="line 5: no result of GenEval; see correct, metadata"):
        geneval.results(written(tmp_path / "results.jsonl", [*lines, {"filename": "", "tag": "colors", "prompt": ""}]))


def test_published_scores_are_the_means_of_their_tasks():
    for overall, *tasks in geneval.PUBLISHED.values():
        assert len(tasks) == len(geneval.TASKS)
        assert sum(tasks) / len(tasks) == pytest.approx(overall, abs=0.0101)  # of rounded numbers
