"""T2I-CompBench's programs find every picture's number and prompt in its name, and their answers are read back."""

import json

import pytest
from fixtures.layouts import drawn, files

from open_kandinsky.evaluation.external import t2i_compbench

PROMPTS = ["a green bench and a blue bowl", "The red hat was on top of the rack.", "an and/or snake_case v1.png file"]


@pytest.fixture
def folder(tmp_path):
    t2i_compbench.write(tmp_path / "out", PROMPTS, drawn(PROMPTS, 2)[::-1], each=2)
    return tmp_path / "out"


def answered(folder, place, answers):
    path = folder / place / "vqa_result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{"question_id": i, "answer": answer} for i, answer in enumerate(answers)]))
    return path


def test_the_folder(folder):
    assert files(folder) == [
        "pictures.jsonl",
        "samples/The red hat was on top of the rack._000002.png",
        "samples/The red hat was on top of the rack._000003.png",
        "samples/a green bench and a blue bowl_000000.png",
        "samples/a green bench and a blue bowl_000001.png",
        "samples/an and or snake case v1 file_000004.png",
        "samples/an and or snake case v1 file_000005.png",
    ]


def test_its_programs_find_number_and_prompt(folder):
    """Each of the ways in which its scripts take a name apart."""
    listed = [json.loads(line) for line in (folder / "pictures.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in listed] == [prompt for prompt in PROMPTS for _ in range(2)]
    for line, picture in zip(listed, drawn(PROMPTS, 2), strict=True):
        name, number = line["file"], line["question_id"]
        assert (folder / "samples" / name).read_bytes() == picture.png
        assert int(name.split("_")[-1].split(".")[0]) == number  # BLIP-VQA, CLIP
        assert int(name.split("_")[1].split(".")[0]) == number  # the detector's list
        assert int(name.split(".png")[0].split("_")[1]) == number  # numeracy
        assert name.split("_")[0] == t2i_compbench.in_a_name(line["prompt"])


def test_a_plain_prompt_is_left_as_it_is():
    assert [t2i_compbench.in_a_name(prompt) for prompt in PROMPTS[:2]] == PROMPTS[:2]


@pytest.mark.parametrize("prompt", ["_", "/", "", "a" * 245, "\u044f" * 123, "a\0b"])
def test_a_prompt_that_is_no_name_is_refused(tmp_path, prompt):
    with pytest.raises(ValueError, match="cannot be a file's name"):
        t2i_compbench.write(tmp_path / "out", [prompt], drawn([prompt], 1), each=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prompt", ["a" * 244, "\u044f" * 122])
def test_the_longest_prompt_that_is_a_name(tmp_path, prompt):
    t2i_compbench.write(tmp_path / "out", [prompt], drawn([prompt], 1), each=1)
    assert (tmp_path / "out" / "samples" / f"{prompt}_000000.png").is_file()


def test_missing_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 of 30 pictures are missing, such as picture 9 of prompt 2"):
        t2i_compbench.write(tmp_path / "out", PROMPTS, drawn(PROMPTS, 10)[:-1])
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_written_over(folder):
    with pytest.raises(ValueError, match="nothing is overwritten"):
        t2i_compbench.write(folder, PROMPTS, drawn(PROMPTS, 2), each=2)


def test_results(folder):
    answered(folder, "annotation_blip", ["0.5000", "0.2500", "0.0000", "1.0000", "0.7500", "0.5000"])
    answered(folder, "labels/annotation_obj_detection_2d", [0, 0, 1, 1, 0.5, 0.5])
    answered(folder, "annotation_clip", [0.3] * 6)
    assert t2i_compbench.results(folder) == {
        "blip_vqa": {"score": 0.5, "n": 6},
        "unidet_2d": {"score": 0.5, "n": 6},
        "clip": {"score": pytest.approx(0.3, abs=1e-15), "n": 6},
    }


def test_the_first_releases_place_is_known(folder):
    answered(folder, "annotation_obj_detection", [1] * 6)
    assert t2i_compbench.results(folder)["unidet_2d"]["score"] == 1


def test_each_reported_metric_has_a_place():
    assert set(t2i_compbench.REPORTED.values()) == set(t2i_compbench.PLACES)


def test_a_folder_without_results_says_where_they_would_be(folder):
    with pytest.raises(ValueError, match="no vqa_result.json in any of annotation_3_in_1, "):
        t2i_compbench.results(folder)


@pytest.mark.parametrize("answers", [[1] * 5, [1] * 7, [], [float("nan")] * 6, ["no"] * 6])
def test_answers_that_are_not_one_for_each_picture_are_refused(folder, answers):
    answered(folder, "annotation_clip", answers)
    with pytest.raises(ValueError, match="annotation_clip"):
        t2i_compbench.results(folder)


def test_two_answers_to_a_picture_are_refused(folder):
    path = answered(folder, "annotation_clip", [1] * 6)
    path.write_text(json.dumps(json.loads(path.read_text())[:1] * 6))
    with pytest.raises(ValueError, match="several to one picture"):
        t2i_compbench.results(folder)


def test_prompts_of_a_list(tmp_path):
    path = tmp_path / "numeracy_val.txt"
    path.write_text("two cats\t2\n\nthree dogs\t3\r\n")
    assert t2i_compbench.read_prompts(path) == ["two cats", "three dogs"]
    path.write_text("\n\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        t2i_compbench.read_prompts(path)
