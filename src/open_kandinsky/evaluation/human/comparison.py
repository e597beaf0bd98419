"""What a judge is shown and may answer. Which system drew what is known here and never leaves."""

import hmac
import io
import secrets
import unicodedata
from collections.abc import Sequence
from typing import Any

from PIL import Image

from open_kandinsky.core.errors import UserError
from open_kandinsky.evaluation.human.votes import QUESTIONS, PicturePair, Presented, Votes, presented

LONGEST = 60  # letters of a judge's name
SIDES = ("left", "equal", "right")


class Comparison:
    """Pairs and their votes, as each judge sees them.

    Pairs and pictures have names that are drawn when it is made: they say nothing, and are gone with it.
    """

    def __init__(self, pairs: Sequence[PicturePair], votes: Votes, *, seed: int) -> None:
        self.pairs, self.votes, self.seed = pairs, votes, seed
        self._secret = secrets.token_bytes(32)
        self._pictures = {self._name(pair, system): getattr(pair, system) for pair in pairs for system in "ab"}

    def view(self, judge: str, at: int | None = None) -> dict[str, Any]:
        """Pair number `at` of the judge's order, by default the first that is not answered whole.

        `pair` is null where all are. ValueError for a name that is none, and for a number that there is not.
        """
        judge = named(judge)
        order, done = presented(judge, self.seed, self.pairs), self.votes.done(judge)
        if at is not None and not 0 <= at < len(order):
            raise UserError(f"there is no pair {at}: there are {len(order)}")
        open_ones = (i for i, shown in enumerate(order) if (shown.pair.prompt, shown.pair.nth) not in done)
        at = next(open_ones, None) if at is None else at
        return {
            "judge": judge,
            "questions": QUESTIONS,
            "total": len(order),
            "done": len(done),
            "at": at,
            "pair": None if at is None else self._seen(judge, order[at]),
            "next": None if at is None or at + 1 == len(order) else self._sides(order[at + 1]),
        }

    def vote(self, judge: str, pair: str, question: str, answer: str) -> dict[str, Any]:
        """Store which side is better; returns the pair's view. ValueError for what is not on the page."""
        judge = named(judge)
        order = presented(judge, self.seed, self.pairs)
        at = next((i for i, shown in enumerate(order) if self._name(shown.pair) == pair), None)
        if at is None:
            raise UserError("this page is older than the program that shows it: load it again")
        if question not in QUESTIONS or answer not in SIDES:
            raise UserError(f"{question}={answer}: one of {', '.join(QUESTIONS)}, and one of {', '.join(SIDES)}")
        self.votes.cast(judge, order[at], question, turned(answer, order[at]))
        return self.view(judge, at)

    def picture(self, name: str) -> bytes | None:
        """A PNG with nothing but the pixels; None for a name that there is not. ValueError as `Shown.read`."""
        shown = self._pictures.get(name)
        return None if shown is None else bare(shown.read())

    def _seen(self, judge: str, shown: Presented) -> dict[str, Any]:
        given = {question: turned(answer, shown) for question, answer in self.votes.answers(judge, shown.pair).items()}
        return {"name": self._name(shown.pair), "prompt": shown.pair.prompt, "answers": given, **self._sides(shown)}

    def _sides(self, shown: Presented) -> dict[str, str]:
        right = "b" if shown.left == "a" else "a"
        return {"left": self._name(shown.pair, shown.left), "right": self._name(shown.pair, right)}

    def _name(self, pair: PicturePair, system: str = "") -> str:
        return hmac.digest(self._secret, f"{pair.key}{system}".encode(), "sha256").hex()


def turned(answer: str, shown: Presented) -> Any:
    """A side as the system that was on it, and a system as the side that it was on."""
    right = "b" if shown.left == "a" else "a"
    return {"left": shown.left, "right": right, shown.left: "left", right: "right"}.get(answer, answer)


def named(judge: str) -> str:
    """The name with single spaces between its words; ValueError for one that is empty, long or not to be read."""
    name = " ".join(unicodedata.normalize("NFC", judge).split())
    if not name or len(name) > LONGEST or not name.isprintable():
        raise UserError(f"a judge's name has 1 to {LONGEST} letters: {name[:LONGEST]!r} has {len(name)}")
    return name


def bare(png: bytes) -> bytes:
    """The pixels alone: `generate` writes the weights' hash and more into a picture's file."""
    data = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        pixels = image.convert("RGB")
        Image.frombytes("RGB", pixels.size, pixels.tobytes()).save(data, format="png")
    return data.getvalue()
