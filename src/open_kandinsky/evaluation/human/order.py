"""In which order a judge sees the pairs, and which picture is on the left: a function of judge, seed and pair."""

import hashlib
import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

from open_kandinsky.evaluation.human.pairs import Pair

System = Literal["a", "b"]


class Presented(NamedTuple):
    """A pair, and the system whose picture is on the left."""

    pair: Pair
    left: System


def presented(judge: str, seed: int, pairs: Sequence[Pair]) -> list[Presented]:
    """Shuffled for each judge anew, and the same at any time: nothing of it has to be stored."""
    order = sorted(pairs, key=lambda pair: drawn("order", seed, judge, pair.key))
    return [Presented(pair, "a" if drawn("side", seed, judge, pair.key)[0] < 128 else "b") for pair in order]


def drawn(what: str, seed: int, judge: str, key: str) -> bytes:
    """32 bytes, as good as random."""
    return hashlib.sha256(json.dumps([what, seed, judge, key]).encode()).digest()
