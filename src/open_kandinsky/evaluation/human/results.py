"""What the votes say: how often system a wins, how certain that is, and how far the judges agree.

A win rate has two 95% intervals: of independent votes, and of prompts that are drawn again. Agreement is kappa: 1 where
judges always agree, 0 where they agree as often as by chance.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import sqrt
from typing import Any

import numpy as np

from open_kandinsky.core.errors import UserError
from open_kandinsky.evaluation.human.votes import QUESTIONS, Vote

Number = float | int
Interval = tuple[float, float]

Z = 1.959963984540054  # 95% of a normal distribution lie within Z standard deviations
RESAMPLES = 10_000


def wilson(wins: Number, n: int) -> Interval:
    """Wilson's interval (1927) of the share of wins in `n` independent votes.

    It stays in [0, 1] and has a width where all votes agree. A tie counts as half a win; with ties it is wider than
    necessary, for half a win varies less than a win or a loss. ValueError without votes.
    """
    if n < 1:
        raise UserError(f"there is no win rate of {n} votes")
    centre, shrunk = (wins + Z**2 / 2) / (n + Z**2), n / (n + Z**2)
    half = Z * shrunk * sqrt(wins / n * (1 - wins / n) / n + (Z / (2 * n)) ** 2)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def over_prompts(scores: Sequence[Sequence[Number]], *, seed: int = 0) -> Interval | None:
    """The interval of the mean score over prompts, from each prompt's votes' scores; None for fewer than 2 prompts.

    Votes on one prompt are alike: several judges see the same picture, and a system that knows a subject knows it in
    each picture. Therefore prompts are drawn again, with replacement and with all their votes (the cluster bootstrap,
    percentiles of 10,000 samples; Efron & Tibshirani 1993). This is the interval to quote: Wilson's takes 50 votes on
    one prompt for as much as 50 prompts. Where all prompts agree it has no width; quote Wilson's then, with the number
    of prompts in place of that of votes.
    """
    if len(scores) < 2:
        return None
    sums, counts = (np.array([measure(of_prompt) for of_prompt in scores], dtype=np.float64) for measure in (sum, len))
    drawn = np.random.default_rng(seed).multinomial(len(scores), np.full(len(scores), 1 / len(scores)), RESAMPLES)
    low, high = np.quantile(drawn @ sums / (drawn @ counts), [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def cohen(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Kappa of two judges' answers to the same questions (Cohen 1960).

    Chance agreement comes from each judge's shares of answers. None without a question, and where both always gave the
    same answer: chance explains all of it.
    """
    n = len(first)
    if n != len(second):
        raise UserError(f"{n} answers and {len(second)}: two judges' answers are to the same questions")
    if not n:
        return None
    a, b = Counter(first), Counter(second)
    agreed = sum(x == y for x, y in zip(first, second, strict=True))
    return _kappa(agreed / n, sum(a[answer] * b[answer] for answer in a) / n**2)


def fleiss(answers: Sequence[Sequence[str]]) -> float | None:
    """Kappa of any number of judges, given the answers to each question (Fleiss 1971).

    Questions may have different numbers of answers; one with fewer than 2 is left out. Agreement on a question is the
    share of its pairs of answers that are equal, averaged over questions; chance comes from the shares of all answers.
    None as for `cohen`.
    """
    counts = [Counter(given) for given in answers if len(given) > 1]
    if not counts:
        return None
    agreed = [sum(c * (c - 1) for c in count.values()) / (count.total() * (count.total() - 1)) for count in counts]
    total = sum(counts, Counter())
    return _kappa(sum(agreed) / len(agreed), sum((c / total.total()) ** 2 for c in total.values()))


def _kappa(agreed: float, by_chance: float) -> float | None:
    return None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)


SCORES = {"a": 1.0, "equal": 0.5, "b": 0.0}  # of a vote, for a: a tie is half a win
EXPLAINED = {
    "win_rate": "mean over votes of 1 where a's picture is better, 0.5 where they are equal, 0 where b's is",
    "wilson_95": "95% interval if all votes were independent, also those on one prompt",
    "prompts_95": "95% interval over prompts, drawn again with all their votes: the one to quote",
    "on_left": "share of the picture on the left in votes that are not equal: 0.5 where the side plays no part",
    "kappa": "agreement of judges beyond chance on pairs that several have seen: Cohen's for two, Fleiss's for all",
}


def results(votes: Sequence[Vote]) -> dict[str, Any]:
    """For each question: counts, win rate of a with both intervals, each judge's win rate, agreement.

    `votes` has one for each judge, pair and question, as `Votes.counted` gives them. ValueError without any.
    """
    if not votes:
        raise UserError("there are no votes yet")
    return {
        "votes": len(votes),
        "pairs": len({(vote.prompt, vote.nth) for vote in votes}),
        "prompts": len({vote.prompt for vote in votes}),
        "judges": dict(sorted(Counter(vote.judge for vote in votes).items())),
        "questions": {name: of_question([vote for vote in votes if vote.question == name]) for name in QUESTIONS},
        "explained": EXPLAINED,
    }


def of_question(votes: Sequence[Vote]) -> dict[str, Any]:
    """The numbers of one question; None where it has no votes."""
    counts = Counter(vote.answer for vote in votes)
    by_prompt, by_judge = grouped(votes, lambda vote: vote.prompt), grouped(votes, lambda vote: vote.judge)
    decided = [vote for vote in votes if vote.answer != "equal"]
    left = sum(vote.answer == vote.on_left for vote in decided)
    return {
        "n": len(votes),
        **{answer: counts[answer] for answer in SCORES},
        "win_rate": win_rate(votes),
        "wilson_95": wilson(sum(scores(votes)), len(votes)) if votes else None,
        "prompts_95": over_prompts([scores(some) for some in by_prompt.values()]),
        "on_left": left / len(decided) if decided else None,
        "on_left_wilson_95": wilson(left, len(decided)) if decided else None,
        "win_rate_by_judge": {judge: win_rate(some) for judge, some in sorted(by_judge.items())},
        "kappa": agreement(votes),
    }


def agreement(votes: Sequence[Vote]) -> dict[str, Any]:
    """Kappa of all judges, and of each two of them with the number of pairs that both have judged."""
    by_judge: defaultdict[str, dict[tuple[str, int], str]] = defaultdict(dict)
    for vote in votes:
        by_judge[vote.judge][vote.prompt, vote.nth] = vote.answer
    by_pair = grouped(votes, lambda vote: (vote.prompt, vote.nth)).values()
    two = []
    for judges in combinations(sorted(by_judge), 2):
        first, second = (by_judge[judge] for judge in judges)
        both = [pair for pair in first if pair in second]
        kappa = cohen([first[pair] for pair in both], [second[pair] for pair in both])
        two.append({"judges": list(judges), "n": len(both), "kappa": kappa})
    return {"all": fleiss([[vote.answer for vote in some] for some in by_pair]), "two": two}


def grouped(votes: Sequence[Vote], by: Callable[[Vote], Any]) -> dict[Any, list[Vote]]:
    groups = defaultdict(list)
    for vote in votes:
        groups[by(vote)].append(vote)
    return dict(groups)


def scores(votes: Sequence[Vote]) -> list[float]:
    return [SCORES[vote.answer] for vote in votes]


def win_rate(votes: Sequence[Vote]) -> float | None:
    return sum(scores(votes)) / len(votes) if votes else None


def headline(report: Mapping[str, Any]) -> str:
    """The results in a few lines of text."""
    numbers = f"{report['votes']} votes of {len(report['judges'])} judges on {report['pairs']} pairs"
    parts = [question_lines(words, report["questions"][name]) for name, words in QUESTIONS.items()]
    return "\n\n".join([f"{numbers} of {report['prompts']} prompts", *parts])


def question_lines(words: str, of: Mapping[str, Any]) -> str:
    if not of["n"]:
        return f"{words}\n  no votes"
    wins, kappa = percent(of["win_rate"]), of["kappa"]["all"]
    lines = [
        words,
        f"a {of['a']}, equal {of['equal']}, b {of['b']}: a wins {wins} of votes, ties counted half",
        f"95% over prompts: {interval(of['prompts_95'])}; if all votes were independent: {interval(of['wilson_95'])}",
        f"agreement of judges (Fleiss's kappa): {'unknown' if kappa is None else f'{kappa:.2f}'}",
    ]
    return "\n  ".join(lines)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def interval(ends: Interval | None) -> str:
    return "unknown, with one prompt" if ends is None else " to ".join(map(percent, ends))
