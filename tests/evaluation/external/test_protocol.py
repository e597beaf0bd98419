"""protocol=geneval and protocol=t2i_compbench: drawn into their folders, and their results into metrics.json."""

import json

import pytest
from PIL import Image

from open_kandinsky.config import compose
from open_kandinsky.evaluate import evaluate
from open_kandinsky.loading import load

PROMPTS = ["a photo of a bench", "a photo of a green dog"]


def run(system, out, *more):
    return evaluate(compose.compose("evaluate", [f"weights='{system}'", f"out='{out}'", "block=5", *more]))


def metadata(folder):
    path = folder / "evaluation_metadata.jsonl"
    lines = [{"tag": "single_object", "include": [], "prompt": prompt} for prompt in PROMPTS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.slow
def test_four_pictures_of_each_prompt(system, tmp_path):
    run(system, tmp_path / "out", "protocol=geneval", f"protocol.prompts='{metadata(tmp_path)}'")
    folder = tmp_path / "out" / "geneval"
    texts = [prompt for prompt in PROMPTS for _ in range(4)]
    pipe = load(system)
    drawn = pipe.text_to_image(texts[:5], seeds=range(5)) + pipe.text_to_image(texts[5:], seeds=range(5, 8))
    for i, image in enumerate(drawn):
        with Image.open(folder / f"{i // 4:05d}" / "samples" / f"{i % 4:04d}.png") as there:
            assert there.tobytes() == image.tobytes()
    assert json.loads((folder / "00001" / "metadata.jsonl").read_text())["prompt"] == PROMPTS[1]


def test_ten_pictures_in_t2i_compbenchs_folder(system, tmp_path):
    (tmp_path / "color_val.txt").write_text("a red car\tx\n")
    run(system, tmp_path / "out", "protocol=t2i_compbench", f"protocol.prompts='{tmp_path}/color_val.txt'")
    names = sorted(path.name for path in (tmp_path / "out" / "t2i_compbench" / "samples").iterdir())
    assert names == [f"a red car_{number:06d}.png" for number in range(10)]


def test_results_come_back(system, tmp_path):
    lines = [
        {"filename": f"{i}", "tag": "single_object", "prompt": "p", "correct": i < 3, "reason": "", "metadata": "{}"}
        for i in range(4)
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ["protocol=geneval", f"protocol.results='{tmp_path}/results.jsonl'"]
    run(system, tmp_path / "out", *given)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["metrics"]["tasks"]["single_object"] == {"accuracy": 0.75, "n": 4}
    with pytest.raises(ValueError, match="holds metrics already"):
        run(system, tmp_path / "out", *given)


def test_neither_prompts_nor_results(system, tmp_path):
    with pytest.raises(ValueError, match="give protocol.prompts=FILE to draw, or protocol.results=PATH"):
        run(system, tmp_path / "out", "protocol=geneval")
