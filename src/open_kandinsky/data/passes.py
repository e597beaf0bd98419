"""An endless run of batches, cut into the passes that a trainer asks for."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

KEPT = 4


class Passes(Generic[T]):
    """Knows the place after the last batch that was trained with, of the last few that were drawn.

    `trained` says how many batches of its present epoch the trainer has taken; None: there is no trainer, and every
    batch that is drawn counts. A trainer may have drawn more than it took, and may begin in the middle of an epoch.
    """

    def __init__(self, *, begin: T, length: int, trained: Callable[[], int | None]) -> None:
        self.length, self.trained = length, trained
        self.places = deque([begin], maxlen=KEPT)
        self.drawn = 0
        self.before: int | None = None

    def walk(self, batches: Iterator[tuple[Any, T]]) -> Iterator[Any]:
        """One pass over a run of batches and the places after them."""
        self.drawn = 0
        return self.draw(batches)

    def draw(self, batches: Iterator[tuple[Any, T]]) -> Iterator[Any]:
        for _ in range(self.length):
            if self.drawn == 0:
                self.before = self.trained()
            batch, place = next(batches)
            self.drawn += 1
            self.places.append(place)
            yield batch

    def last(self) -> T:
        """After the last batch that was drawn."""
        return self.places[-1]

    def place(self) -> T:
        """After the last batch that was trained with."""
        trained = self.trained()
        if trained is None or self.before is None or self.drawn == 0:
            return self.last()
        return self.places[-1 - (self.drawn - (trained - self.before))]
