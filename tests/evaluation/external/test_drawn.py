"""Pictures reach a layout only if all are there, each for its prompt."""

import json

import pytest
from fixtures.layouts import drawn, png
from PIL import Image

from open_kandinsky.evaluation.external.pictures import NumberedPicture, complete, of_gallery
from open_kandinsky.generation.gallery import MANIFEST, Gallery, Picture

PROMPTS = ["a cat", "a dog", "a cat"]


def test_all_pass_in_any_order():
    pictures = drawn(PROMPTS, 2)[::-1]
    assert list(complete(iter(pictures), PROMPTS, 2)) == pictures


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        (drawn(PROMPTS, 2)[:-2], r"2 of 6 pictures are missing, such as picture 0 of prompt 2 \('a cat'\)"),
        ([], "6 of 6 pictures are missing"),
        (drawn(PROMPTS, 3), "picture 2 of prompt 0 .* not asked for: there are 3 prompts with 2 pictures each"),
        (drawn(PROMPTS[:1], 2) * 2, "picture 0 of prompt 0 .* came twice"),
        ([NumberedPicture(1, "a cat", 0, png(0, 0, 0))], "the prompt is 'a dog' in the list"),
        ([NumberedPicture(1, "a dog", 0, b"\xff\xd8\xff\xe0")], "is no PNG"),
    ],
)
def test_others_are_refused(pictures, said):
    with pytest.raises(ValueError, match=said):
        list(complete(iter(pictures), PROMPTS, 2))


@pytest.fixture
def gallery(tmp_path):
    """Two pictures a prompt, as generate leaves them, the second "a cat" after "a dog"."""
    pictures = [Picture(i, PROMPTS[i // 2], seed=i) for i in range(6)]
    gallery = Gallery(tmp_path / "drawn", {"count": 2}, pictures)
    gallery.add(pictures, [Image.new("RGB", (8, 8), (40 * i, 0, 0)) for i in range(6)], {})
    gallery.finish()
    return gallery.folder


def test_a_gallery_gives_each_prompt_its_own(gallery):
    pictures = list(complete(of_gallery(gallery, PROMPTS, 2), PROMPTS, 2))
    assert [(p.index, p.nth) for p in pictures] == [(i, n) for i in range(3) for n in range(2)]
    assert [p.png for p in pictures] == [(gallery / f"{i:05d}.png").read_bytes() for i in range(6)]


def test_a_gallery_of_other_prompts_is_refused(gallery):
    with pytest.raises(ValueError, match="00002.png shows 'a dog', of which 0 pictures"):
        list(of_gallery(gallery, ["a cat", "a cat"], 2))
    with pytest.raises(ValueError, match="00004.png shows 'a cat', of which 2 pictures"):
        list(of_gallery(gallery, ["a cat", "a dog"], 2))


def test_a_gallery_that_was_changed_or_is_not_finished_is_refused(gallery):
    (gallery / "00003.png").write_bytes(png(0, 0, 0))
    with pytest.raises(ValueError, match="00003.png is not the picture that manifest.jsonl lists"):
        list(of_gallery(gallery, PROMPTS, 2))
    (gallery / MANIFEST).unlink()
    with pytest.raises(ValueError, match="no manifest.jsonl"):
        list(of_gallery(gallery, PROMPTS, 2))


def test_a_prompt_may_hold_what_only_looks_like_the_end_of_a_line(tmp_path):
    prompt = "a\u2028cat\x85"
    gallery = Gallery(tmp_path / "drawn", {}, [Picture(0, prompt, seed=0)])
    gallery.add(gallery.pictures, [Image.new("RGB", (8, 8))], {})
    gallery.finish()
    assert json.loads((gallery.folder / MANIFEST).read_text(encoding="utf-8"))["prompt"] == prompt
    assert [p.prompt for p in of_gallery(gallery.folder, [prompt], 1)] == [prompt]
