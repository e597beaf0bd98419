"""Two 95% intervals of a win rate: of independent votes, and of prompts drawn anew."""

from collections.abc import Sequence
from math import sqrt

import numpy as np

from open_kandinsky.core.errors import UserError

Number = float | int
Interval = tuple[float, float]

Z = 1.959963984540054  # of a normal distribution, 95% is within so many standard deviations
RESAMPLES = 10_000


def wilson(wins: Number, n: int) -> Interval:
    """Of a share of `n` independent votes (Wilson 1927): the shares from which it is not further than chance goes.

    It never leaves [0, 1] and has a width where all votes agree. A tie counts as half a win; with ties it is wider
    than it need be, for half a win varies less than a win or a loss. ValueError without votes.
    """
    if n < 1:
        raise UserError(f"there is no win rate of {n} votes")
    centre, shrunk = (wins + Z**2 / 2) / (n + Z**2), n / (n + Z**2)
    half = Z * shrunk * sqrt(wins / n * (1 - wins / n) / n + (Z / (2 * n)) ** 2)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def over_prompts(scores: Sequence[Sequence[Number]], *, seed: int = 0) -> Interval | None:
    """Of the mean of all votes' scores, given prompt by prompt; None for fewer than 2 prompts.

    Votes on one prompt are alike: several judges see the same picture, and a system that knows a subject knows it in
    each picture. What is drawn again, with replacement, is therefore prompts with all their votes (the cluster
    bootstrap, percentiles of 10,000 samples; Efron & Tibshirani 1993). This is the interval to quote: Wilson's takes
    50 votes on one prompt for as much as 50 prompts. Where all prompts agree it has no width; quote Wilson's then,
    with the number of prompts in place of that of votes.
    """
    if len(scores) < 2:
        return None
    sums, counts = (np.array([measure(of_prompt) for of_prompt in scores], dtype=np.float64) for measure in (sum, len))
    drawn = np.random.default_rng(seed).multinomial(len(scores), np.full(len(scores), 1 / len(scores)), RESAMPLES)
    low, high = np.quantile(drawn @ sums / (drawn @ counts), [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)
