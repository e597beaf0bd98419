"""What a judge sees and may answer. Which system drew a picture is known here and never sent to the page."""

import hmac
import io
import secrets
import unicodedata
from collections.abc import Sequence
from typing import Any

from PIL import Image

from open_kandinsky.core.errors import UserError
from open_kandinsky.evaluation.human.votes import QUESTIONS, PicturePair, PresentedPair, Votes, presentation

LONGEST = 60  # letters of a judge's name
SIDES = ("left", "equal", "right")


class Comparison:
    """Pairs and their votes, as each judge sees them.

    The names of pairs and pictures are hashes with a random secret: they reveal nothing, and end with this object.
    """

    def __init__(self, pairs: Sequence[PicturePair], votes: Votes, *, seed: int) -> None:
        self.pairs, self.votes, self.seed = pairs, votes, seed
        self._secret = secrets.token_bytes(32)
        self._pictures = {self._name(pair, system): getattr(pair, system) for pair in pairs for system in "ab"}

    def view(self, judge: str, at: int | None = None) -> dict[str, Any]:
        """Pair number `at` of the judge's order, by default the first with an open question.

        `pair` is null where none is open. ValueError for a name that cannot be a judge's, and for a wrong number.
        """
        judge = judge_name(judge)
        order, done = presentation(judge, self.seed, self.pairs), self.votes.done(judge)
        if at is not None and not 0 <= at < len(order):
            raise UserError(f"there is no pair {at}: there are {len(order)}")
        if at is None:
            at = next((i for i, shown in enumerate(order) if (shown.pair.prompt, shown.pair.nth) not in done), None)
        return {
            "judge": judge,
            "questions": QUESTIONS,
            "total": len(order),
            "done": len(done),
            "at": at,
            "pair": None if at is None else self._pair(judge, order[at]),
            "next": None if at is None or at + 1 == len(order) else self._sides(order[at + 1]),
        }

    def vote(self, judge: str, pair: str, question: str, answer: str) -> dict[str, Any]:
        """Store which side is better; returns the pair's view. ValueError for anything that is not on the page."""
        judge = judge_name(judge)
        order = presentation(judge, self.seed, self.pairs)
        at = next((i for i, shown in enumerate(order) if self._name(shown.pair) == pair), None)
        if at is None:
            raise UserError("this page is older than the program that shows it: load it again")
        if question not in QUESTIONS or answer not in SIDES:
            raise UserError(f"{question}={answer}: one of {', '.join(QUESTIONS)}, and one of {', '.join(SIDES)}")
        self.votes.cast(judge, order[at], question, exchange(answer, order[at]))
        return self.view(judge, at)

    def picture(self, name: str) -> bytes | None:
        """A PNG with nothing but the pixels; None for an unknown name. ValueError as `GalleryPicture.read`."""
        picture = self._pictures.get(name)
        return None if picture is None else without_metadata(picture.read())

    def _pair(self, judge: str, shown: PresentedPair) -> dict[str, Any]:
        answers = {
            question: exchange(answer, shown) for question, answer in self.votes.answers(judge, shown.pair).items()
        }
        return {"name": self._name(shown.pair), "prompt": shown.pair.prompt, "answers": answers, **self._sides(shown)}

    def _sides(self, shown: PresentedPair) -> dict[str, str]:
        right = "b" if shown.left == "a" else "a"
        return {"left": self._name(shown.pair, shown.left), "right": self._name(shown.pair, right)}

    def _name(self, pair: PicturePair, system: str = "") -> str:
        return hmac.digest(self._secret, f"{pair.key}{system}".encode(), "sha256").hex()


def exchange(answer: str, shown: PresentedPair) -> Any:
    """A side -> the system that was on it, and a system -> the side that it was on; "equal" stays."""
    right = "b" if shown.left == "a" else "a"
    return {"left": shown.left, "right": right, shown.left: "left", right: "right"}.get(answer, answer)


def judge_name(judge: str) -> str:
    """The name with single spaces between its words; ValueError for one that is empty, too long or not printable."""
    name = " ".join(unicodedata.normalize("NFC", judge).split())
    if not name or len(name) > LONGEST or not name.isprintable():
        raise UserError(f"a judge's name has 1 to {LONGEST} letters: {name[:LONGEST]!r} has {len(name)}")
    return name


def without_metadata(png: bytes) -> bytes:
    """A PNG of the same pixels: the file of `generate` also holds the weights' hash and more."""
    data = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        pixels = image.convert("RGB")
        Image.frombytes("RGB", pixels.size, pixels.tobytes()).save(data, format="png")
    return data.getvalue()
