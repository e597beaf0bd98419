"""Kappas against worked examples and against their limits."""

import numpy as np
import pytest

from open_kandinsky.evaluation.human.results import cohen, fleiss

# answers of 14 judges to 10 questions, in five categories: Fleiss' worked example, kappa 0.210
TABLE = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]


def spelled(row):
    return [str(answer) for answer, n in enumerate(row) for _ in range(n)]


def two(both_yes, first_only, second_only, both_no):
    first = ["yes"] * (both_yes + first_only) + ["no"] * (second_only + both_no)
    second = ["yes"] * both_yes + ["no"] * first_only + ["yes"] * second_only + ["no"] * both_no
    return first, second


@pytest.mark.parametrize(("table", "kappa"), [((20, 5, 10, 15), 0.4), ((45, 15, 25, 15), 0.12 / 0.92)])
def test_cohen_of_two_by_two_tables(table, kappa):
    assert cohen(*two(*table)) == pytest.approx(kappa, abs=1e-12)


def test_fleiss_worked_example():
    assert fleiss([spelled(row) for row in TABLE]) == pytest.approx(0.210, abs=5e-4)


def test_fleiss_is_the_same_in_any_order():
    answers = [spelled(row)[::-1] for row in TABLE[::-1]]
    assert fleiss(answers) == pytest.approx(fleiss([spelled(row) for row in TABLE]), abs=1e-15)


def test_fleiss_by_counting_pairs_of_answers():
    """Brute force, with numbers of answers that differ."""
    rng = np.random.default_rng(0)
    answers = [list(map(str, rng.integers(0, 3, n))) for n in (2, 3, 5, 2, 4)]
    agreed = np.mean([np.mean([x == y for i, x in enumerate(a) for j, y in enumerate(a) if i != j]) for a in answers])
    every = sum(answers, [])
    chance = sum((every.count(c) / len(every)) ** 2 for c in "012")
    assert fleiss(answers) == pytest.approx((agreed - chance) / (1 - chance), abs=1e-12)


def test_agreement_and_its_opposite():
    answers = ["a", "b", "equal", "a"]
    assert cohen(answers, answers) == 1 and fleiss([[x, x] for x in answers]) == 1
    assert cohen(["a", "b"], ["b", "a"]) == -1 and fleiss([["a", "b"], ["b", "a"]]) == -1


def test_judges_who_answer_by_lot_do_not_agree():
    drawn = np.random.default_rng(0).choice(["a", "b", "equal"], (2, 20_000))
    assert abs(cohen(*map(list, drawn))) < 0.02 and abs(fleiss([list(x) for x in drawn.T[:5000]])) < 0.03


def test_one_answer_is_left_out():
    assert fleiss([["a", "b"], ["b", "b"], ["a"]]) == fleiss([["a", "b"], ["b", "b"]])


def test_there_is_none_where_chance_explains_all_or_nothing_was_asked():
    assert cohen(["a", "a"], ["a", "a"]) is None and fleiss([["a", "a"], ["a", "a"]]) is None
    assert cohen([], []) is None and fleiss([["a"], []]) is None


def test_answers_to_other_questions_are_refused():
    with pytest.raises(ValueError, match="2 answers and 1"):
        cohen(["a", "b"], ["a"])
