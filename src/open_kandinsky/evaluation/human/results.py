"""What the votes say: how often system a wins, how sure that is, and how far the judges agree."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from open_kandinsky.core.errors import UserError
from open_kandinsky.evaluation.human.agreement import cohen, fleiss
from open_kandinsky.evaluation.human.interval import Interval, over_prompts, wilson
from open_kandinsky.evaluation.human.votes import QUESTIONS, Vote

SCORES = {"a": 1.0, "equal": 0.5, "b": 0.0}  # of a vote, for a: a tie is half a win
EXPLAINED = {
    "win_rate": "mean over votes of 1 where a's picture is better, 0.5 where they are equal, 0 where b's is",
    "wilson_95": "95% interval if all votes were independent, also those on one prompt",
    "prompts_95": "95% interval over prompts, drawn again with all their votes: the one to quote",
    "on_left": "share of the picture on the left in votes that are not equal: 0.5 where the side plays no part",
    "kappa": "agreement of judges beyond chance on pairs that several have seen: Cohen's for two, Fleiss's for all",
}


def results(votes: Sequence[Vote]) -> dict[str, Any]:
    """By question: counts, win rate of a with both intervals, each judge's win rate, agreement. Votes: one for each
    judge, pair and question, as `Votes.counting` gives them. ValueError without any."""
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
    """The numbers of one question; null for what it has no votes for."""
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
    """Kappa of all judges, and of each two of them with the number of pairs that both have seen."""
    answers = {judge: answers_of(some) for judge, some in grouped(votes, lambda vote: vote.judge).items()}
    pairs = grouped(votes, lambda vote: (vote.prompt, vote.nth)).values()
    return {
        "all": fleiss([[vote.answer for vote in some] for some in pairs]),
        "two": [
            {"judges": list(two), **of_two(*(answers[judge] for judge in two))}
            for two in combinations(sorted(answers), 2)
        ],
    }


def answers_of(votes: Sequence[Vote]) -> dict[tuple[str, int], str]:
    return {(vote.prompt, vote.nth): vote.answer for vote in votes}


def of_two(first: Mapping[tuple[str, int], str], second: Mapping[tuple[str, int], str]) -> dict[str, Any]:
    both = [pair for pair in first if pair in second]
    return {"n": len(both), "kappa": cohen([first[pair] for pair in both], [second[pair] for pair in both])}


def grouped(votes: Sequence[Vote], by: Callable[[Vote], Any]) -> dict[Any, list[Vote]]:
    groups = defaultdict(list)
    for vote in votes:
        groups[by(vote)].append(vote)
    return dict(groups)


def scores(votes: Sequence[Vote]) -> list[float]:
    return [SCORES[vote.answer] for vote in votes]


def win_rate(votes: Sequence[Vote]) -> float | None:
    return sum(scores(votes)) / len(votes) if votes else None


def told(found: Mapping[str, Any]) -> str:
    """The headline in a few lines of text."""
    numbers = f"{found['votes']} votes of {len(found['judges'])} judges on {found['pairs']} pairs"
    parts = [told_of(words, found["questions"][name]) for name, words in QUESTIONS.items()]
    return "\n\n".join([f"{numbers} of {found['prompts']} prompts", *parts])


def told_of(words: str, of: Mapping[str, Any]) -> str:
    if not of["n"]:
        return f"{words}\n  no votes"
    lines = [
        words,
        f"a {of['a']}, equal {of['equal']}, b {of['b']}: a wins {percent(of['win_rate'])} of votes, ties counted half",
        f"95% over prompts: {span(of['prompts_95'])}; if all votes were independent: {span(of['wilson_95'])}",
        f"agreement of judges (Fleiss's kappa): {decimal(of['kappa']['all'])}",
    ]
    return "\n  ".join(lines)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def span(interval: Interval | None) -> str:
    return "unknown, with one prompt" if interval is None else " to ".join(percent(end) for end in interval)


def decimal(kappa: float | None) -> str:
    return "unknown" if kappa is None else f"{kappa:.2f}"
