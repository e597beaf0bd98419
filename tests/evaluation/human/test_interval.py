"""Intervals have closed forms."""

import itertools

import numpy as np
import pytest
from scipy import optimize, stats

from open_kandinsky.evaluation.human import results
from open_kandinsky.evaluation.human.results import Z, over_prompts, wilson


def test_z_is_the_normal_distributions():
    assert pytest.approx(stats.norm.ppf(0.975), abs=1e-15) == Z


@pytest.mark.parametrize(("wins", "n"), list(itertools.product([0.2, 0.5, 0.77], [1, 7, 100, 5000])))
def test_wilson_ends_where_chance_would_just_give_what_was_seen(wins, n):
    """Each end p solves |seen - p| = z sqrt(p (1 - p) / n): the test that it inverts."""
    for end in wilson(wins * n, n):
        assert abs(wins - end) == pytest.approx(Z * np.sqrt(end * (1 - end) / n), rel=1e-9)


@pytest.mark.parametrize("n", [1, 10, 400])
def test_wilson_where_all_votes_agree(n):
    assert wilson(n, n) == pytest.approx((n / (n + Z**2), 1))
    assert wilson(0, n) == pytest.approx((0, Z**2 / (n + Z**2)))


def test_wilson_covers_what_it_promises():
    """Over all outcomes of 60 votes, averaged over true win rates: 95%."""
    n, rates = 60, np.linspace(0.1, 0.9, 81)
    ends = np.array([wilson(wins, n) for wins in range(n + 1)])
    covers = (ends[:, :1] <= rates) & (rates <= ends[:, 1:])
    chance = stats.binom.pmf(np.arange(n + 1)[:, None], n, rates)
    assert (covers * chance).sum(0).mean() == pytest.approx(0.95, abs=0.005)


def test_wilson_needs_votes():
    with pytest.raises(ValueError, match="0 votes"):
        wilson(0, 0)


@pytest.mark.parametrize(("won", "prompts"), [(14, 20), (70, 100)])
def test_prompts_that_are_won_or_lost_whole_give_the_binomial_distributions_percentiles(won, prompts):
    """Drawn again, the number of prompts won is binomial, however many votes there are on each."""
    expected = stats.binom.ppf([0.025, 0.975], prompts, won / prompts) / prompts
    for votes in (1, 9):
        scores = [[1.0] * votes] * won + [[0.0] * votes] * (prompts - won)
        assert over_prompts(scores) == pytest.approx(tuple(expected), abs=1e-12)


def test_independent_votes_give_about_wilsons():
    rng = np.random.default_rng(0)
    scores = [[float(score)] for score in rng.random(400) < 0.6]
    wins = sum(map(sum, scores))
    assert over_prompts(scores) == pytest.approx(wilson(wins, 400), abs=0.01)


def test_ties_narrow_it():
    """200 votes of 1, 0.5 and 0: the standard error of their mean, by the variance of what was seen."""
    scores = [[1.0]] * 60 + [[0.5]] * 100 + [[0.0]] * 40
    spread = Z * np.std([s for (s,) in scores]) / np.sqrt(200)
    low, high = over_prompts(scores)
    assert (low, high) == pytest.approx((0.55 - spread, 0.55 + spread), abs=0.006)
    wide = wilson(110, 200)
    assert wide[0] < low and high < wide[1]


def test_it_covers_what_it_promises_where_wilsons_does_not(monkeypatch):
    """Prompts whose own win rates differ, 8 votes on each: of 200 experiments, 95% of intervals hold the truth."""
    monkeypatch.setattr(results, "RESAMPLES", 1000)
    rng = np.random.default_rng(0)
    held = {"wilson": 0, "prompts": 0}
    for _ in range(200):
        rates = rng.beta(0.6, 0.6, 40)  # mean 0.5
        scores = [list(map(float, rng.random(8) < rate)) for rate in rates]
        for name, (low, high) in {
            "wilson": wilson(sum(map(sum, scores)), 320),
            "prompts": over_prompts(scores, seed=1),
        }.items():
            held[name] += low <= 0.5 <= high
    assert held["wilson"] < 150 and held["prompts"] == pytest.approx(190, abs=8)


def test_one_prompt_has_no_interval_and_agreement_no_width():
    assert over_prompts([[1.0, 0.0]]) is None
    assert over_prompts([[1.0], [1.0, 1.0]]) == (1, 1)


def test_wilson_is_found_by_any_solver():
    ends = [
        optimize.brentq(lambda p: (0.37 - p) ** 2 - Z**2 * p * (1 - p) / 50, *bracket)
        for bracket in ((0, 0.37), (0.37, 1))
    ]
    assert wilson(18.5, 50) == pytest.approx(tuple(ends), abs=1e-9)
