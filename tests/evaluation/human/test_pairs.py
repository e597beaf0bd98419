"""Two folders make pairs, or one message says why not."""

from pathlib import Path

import pytest
from fixtures.compared import PROMPTS, gallery

from open_kandinsky.evaluation.human.votes import GalleryPicture, PicturePair, presentation, read_pairs


@pytest.fixture
def a(tmp_path):
    return gallery(tmp_path / "ours", 250)


def test_pictures_of_a_prompt_are_paired_by_their_order(a, tmp_path):
    """Also where the other folder has the prompts in another order."""
    b = gallery(tmp_path / "theirs", 90, prompts=PROMPTS[::-1])
    pairs = read_pairs(a, b)
    assert [(pair.prompt, pair.nth) for pair in pairs] == [(prompt, nth) for prompt in PROMPTS for nth in (0, 1)]
    assert [pair.b.file for pair in pairs] == [f"{i:05d}.png" for i in (4, 5, 2, 3, 0, 1)]
    assert all(pair.a.read() == (a / pair.a.file).read_bytes() for pair in pairs)


def test_other_prompts_are_refused_and_named_on_both_sides(a, tmp_path):
    b = gallery(tmp_path / "theirs", 90, prompts=[*PROMPTS[:2], "a cat"])
    with pytest.raises(ValueError) as error:
        read_pairs(a, b)
    assert str(error.value) == (
        f"a={a} and b={b} were drawn for other prompts: {b} lacks 2, such as picture 1 of 'ein gr\u00fcner Kreis'; "
        f"{a} lacks 2, such as picture 1 of 'a cat'"
    )


def test_fewer_pictures_of_a_prompt_are_refused(a, tmp_path):
    b = gallery(tmp_path / "theirs", 90, count=1)
    with pytest.raises(ValueError, match="theirs lacks 3, such as picture 2 of 'a red circle'$"):
        read_pairs(a, b)


def test_one_folder_twice_is_refused(a):
    with pytest.raises(ValueError, match="nothing to compare"):
        read_pairs(a, a.parent / "other" / ".." / a.name)


def test_a_changed_picture_and_an_unfinished_folder_are_refused(a, tmp_path):
    b = gallery(tmp_path / "theirs", 90)
    (b / "00002.png").write_bytes((a / "00002.png").read_bytes())
    with pytest.raises(ValueError, match="theirs/00002.png is not the picture"):
        read_pairs(a, b)
    (b / "manifest.jsonl").unlink()
    with pytest.raises(ValueError, match="theirs has no manifest.jsonl"):
        read_pairs(a, b)


@pytest.fixture
def many():
    shown = [GalleryPicture(Path("a"), f"{i}.png", f"hash {i}") for i in range(400)]
    return [PicturePair(f"prompt {i // 2}", i % 2, shown[i], shown[200 + i]) for i in range(200)]


def test_an_order_is_a_function_of_judge_and_seed(many):
    order = presentation("anna", 0, many)
    assert order == presentation("anna", 0, many[::-1]), "and of nothing else"
    assert sorted(shown.pair.key for shown in order) == sorted(pair.key for pair in many)
    for other in (presentation("ben", 0, many), presentation("anna", 1, many)):
        sides = {shown.pair.key: shown.left for shown in other}
        same_side = sum(sides[shown.pair.key] == shown.left for shown in order)
        same_place = sum(x.pair == y.pair for x, y in zip(order, other, strict=True))
        assert 70 < same_side < 130 and same_place < 10  # of 200: by chance 100 and 1


def test_sides_are_even_and_independent_of_place(many):
    lefts = [shown.left == "a" for judge in ("anna", "ben", "cleo") for shown in presentation(judge, 0, many)]
    assert 260 < sum(lefts) < 340  # of 600
    runs = sum(x != y for x, y in zip(lefts, lefts[1:], strict=False))
    assert 260 < runs < 340


def test_a_pair_in_another_place_is_shown_the_same_way(many):
    """A study that is made longer leaves what was seen as it was."""
    sides = {shown.pair.key: shown.left for shown in presentation("anna", 0, many)}
    assert all(shown.left == sides[shown.pair.key] for shown in presentation("anna", 0, many[:50]))
