"""The order in which a shuffle buffer gives samples out, known without the samples."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

BLOCK = 1 << 16


def randoms(seed: str) -> np.random.RandomState:
    """Random numbers that are the same for ever: numpy has frozen this generator and no other (NEP 19)."""
    return np.random.RandomState(np.frombuffer(hashlib.sha256(seed.encode()).digest(), dtype="<u4"))


@dataclass(frozen=True, kw_only=True)
class Permutation:
    """Samples 0 to `n` - 1 through a buffer of `buffer` slots.

    The first samples fill the slots. Then a slot is drawn, what it holds is given out, and the next sample takes its
    place. When no sample comes any more, what the slots hold is given out in any order.
    """

    n: int
    buffer: int
    seed: str

    @property
    def slots(self) -> int:
        return min(self.buffer, self.n)

    def given(self, taken: int) -> Iterator[int]:
        """The samples in the order in which they are given out, without the first `taken`."""
        draws, slots, coming = self.after(taken)
        held = slots.tolist()
        while coming < self.n:
            for slot in drawn(draws, min(BLOCK, self.n - coming), len(held)).tolist():
                yield held[slot]
                held[slot] = coming
                coming += 1
        yield from self.ending(draws, np.array(held, dtype=np.int64), taken).tolist()

    def left(self, taken: int) -> tuple[Int64[np.ndarray, " _"], int]:
        """What remains after `taken` were given out: the samples in the slots, and all from another one on."""
        draws, slots, coming = self.after(taken)
        return (self.ending(draws, slots, taken) if coming == self.n else slots), coming

    def after(self, taken: int) -> tuple[np.random.RandomState, Int64[np.ndarray, " _"], int]:
        """The generator, the slots, and the next sample to come in. Takes no longer than drawing the numbers does."""
        draws, slots = randoms(self.seed), np.arange(self.slots)
        refilled = min(taken, self.n - self.slots)
        for first in range(0, refilled, BLOCK):
            coming = self.slots + np.arange(first, min(first + BLOCK, refilled))
            np.maximum.at(slots, drawn(draws, len(coming), self.slots), coming)  # the last one in a slot stays
        return draws, slots, self.slots + refilled

    def ending(
        self, draws: np.random.RandomState, slots: Int64[np.ndarray, " _"], taken: int
    ) -> Int64[np.ndarray, " _"]:
        """The last samples in their order, without those already given out."""
        order = np.argsort(draws.random_sample(self.slots), kind="stable")
        return slots[order[max(0, taken - (self.n - self.slots)) :]]


def drawn(draws: np.random.RandomState, count: int, slots: int) -> Int64[np.ndarray, " count"]:
    """The next `count` slots."""
    return (draws.random_sample(count) * slots).astype(np.int64)
