"""What a few votes come to, counted by hand."""

import itertools

import pytest

from open_kandinsky.evaluation.human.results import headline, over_prompts, results, wilson
from open_kandinsky.evaluation.human.votes import Vote

SIDES = itertools.cycle("ab")


def cast(judge, answers, question="text"):
    """Votes on prompts of two pairs each; one letter a vote: a, b, or e for equal."""
    named = {"a": "a", "b": "b", "e": "equal"}
    return [
        Vote(judge, f"prompt {i // 2}", i % 2, question, named[answer], next(SIDES)) for i, answer in enumerate(answers)
    ]


def test_counts_rates_and_intervals():
    found = results(cast("anna", "aaeb") + cast("ben", "aaab") + cast("anna", "bb", "looks"))
    assert (found["votes"], found["pairs"], found["prompts"]) == (10, 4, 2)
    assert found["judges"] == {"anna": 6, "ben": 4}
    text = found["questions"]["text"]
    assert (text["n"], text["a"], text["equal"], text["b"]) == (8, 5, 1, 2)
    assert text["win_rate"] == 5.5 / 8 and text["win_rate_by_judge"] == {"anna": 2.5 / 4, "ben": 3 / 4}
    assert text["wilson_95"] == wilson(5.5, 8)
    assert text["prompts_95"] == over_prompts([[1, 1, 1, 1], [0.5, 0, 1, 0]])
    assert found["questions"]["looks"]["win_rate"] == 0 and found["questions"]["looks"]["prompts_95"] is None


def test_agreement():
    """Anna and Ben: three of four alike. By chance, with their shares: (2*3 + 1*1) / 16."""
    found = results(cast("anna", "aaeb") + cast("ben", "aaab") + cast("cleo", "b"))["questions"]["text"]["kappa"]
    anna_ben, anna_cleo, ben_cleo = found["two"]
    assert anna_ben == {"judges": ["anna", "ben"], "n": 4, "kappa": pytest.approx((3 / 4 - 7 / 16) / (9 / 16))}
    assert anna_cleo["n"] == ben_cleo["n"] == 1
    agreed, shares = (1 / 3 + 1 + 0 + 1) / 4, (5**2 + 1**2 + 3**2) / 81
    assert found["all"] == pytest.approx((agreed - shares) / (1 - shares))


def test_one_judge_agrees_with_nobody():
    assert results(cast("anna", "ab"))["questions"]["text"]["kappa"] == {"all": None, "two": []}


def test_who_always_takes_the_left_picture_is_seen():
    votes = [Vote("anna", f"prompt {i}", 0, "text", side, side) for i, side in enumerate("ab" * 20)]
    text = results([*votes, Vote("anna", "x", 0, "text", "equal", "a")])["questions"]["text"]
    assert text["on_left"] == 1 and text["on_left_wilson_95"][0] > 0.9
    assert text["win_rate"] == 0.5


def test_exchanging_the_systems_turns_every_rate_round():
    votes = cast("anna", "aaebaaab") + cast("ben", "ababaeea")
    turned = [vote._replace(answer={"a": "b", "b": "a"}.get(vote.answer, vote.answer)) for vote in votes]
    one, other = (results(some)["questions"]["text"] for some in (votes, turned))
    assert one["win_rate"] == pytest.approx(1 - other["win_rate"])
    assert one["wilson_95"] == pytest.approx([1 - end for end in reversed(other["wilson_95"])])
    assert one["kappa"]["all"] == pytest.approx(other["kappa"]["all"])


def test_what_is_told():
    text = headline(results(cast("anna", "aaeb") + cast("ben", "aaab")))
    assert "8 votes of 2 judges on 4 pairs of 2 prompts" in text
    assert "a 5, equal 1, b 2: a wins 68.8 % of votes, ties counted half" in text
    assert text.endswith("Which picture looks better?\n  no votes")


def test_no_votes_have_no_results():
    with pytest.raises(ValueError, match="no votes yet"):
        results([])
