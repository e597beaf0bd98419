"""How much more often judges agree than they would by chance. 1: always; 0: as by chance; below: less often."""

from collections import Counter
from collections.abc import Sequence

from open_kandinsky.core.errors import UserError


def cohen(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Kappa of two judges' answers to the same questions (Cohen 1960).

    Chance is what their own habits give: each judge's shares of answers. None without a question, and where both
    gave one answer throughout: chance explains all of it.
    """
    n = len(first)
    if n != len(second):
        raise UserError(f"{n} answers and {len(second)}: two judges' answers are to the same questions")
    mine, theirs = Counter(first), Counter(second)
    seen = sum(a == b for a, b in zip(first, second, strict=True))
    return _kappa(seen / n, sum(mine[answer] * theirs[answer] for answer in mine) / n**2) if n else None


def fleiss(answers: Sequence[Sequence[str]]) -> float | None:
    """Kappa of any number of judges, given the answers to each question (Fleiss 1971).

    The answers to a question need not be as many everywhere; a question with fewer than 2 is left out. Agreement on a
    question is the share of its pairs of answers that are equal, averaged over questions; chance is the shares of all
    answers. None as for `cohen`.
    """
    counts = [Counter(of_one) for of_one in answers if len(of_one) > 1]
    if not counts:
        return None
    agreed = [sum(c * (c - 1) for c in count.values()) / (count.total() * (count.total() - 1)) for count in counts]
    every = sum(counts, Counter())
    return _kappa(sum(agreed) / len(agreed), sum((c / every.total()) ** 2 for c in every.values()))


def _kappa(seen: float, by_chance: float) -> float | None:
    return None if by_chance == 1 else (seen - by_chance) / (1 - by_chance)
