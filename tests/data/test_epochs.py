"""The state after the last batch that was trained with, for trainers that draw ahead and that begin anywhere."""

import pytest

from open_kandinsky.data.memory import EpochIterator


class Trainer:
    """Draws `ahead` batches before it takes one; an epoch may have begun elsewhere with `taken` batches."""

    def __init__(self, ahead, taken=0):
        self.ahead, self.taken = ahead, taken

    def states(self, epochs, batches):
        """After each batch that is taken, what the loader says."""
        drawn = epochs.iterate(batches)
        waiting = [next(drawn) for _ in range(self.ahead)]
        while True:
            waiting += [one for one in [next(drawn, None)] if one is not None]
            if not waiting:
                return
            batch = waiting.pop(0)
            self.taken += 1
            yield batch, epochs.last_trained()


def numbered():
    return ((number, number) for number in iter(range(1, 100)))


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("taken", [0, 5])
def test_the_place_is_that_of_the_batch_that_was_taken(ahead, taken):
    trainer, batches = Trainer(ahead, taken), numbered()
    epochs = EpochIterator(start=0, length=6, trained=lambda: trainer.taken)
    assert epochs.last_trained() == 0
    for _ in range(3):
        for batch, place in trainer.states(epochs, batches):
            assert place == batch
        trainer.taken = 0
    assert epochs.last_fetched() == 18


def test_without_a_trainer_what_is_drawn_counts():
    epochs = EpochIterator(start=0, length=4, trained=lambda: None)
    for batch in epochs.iterate(numbered()):
        assert epochs.last_trained() == batch
    assert epochs.last_fetched() == 4


def test_a_pass_of_which_nothing_is_drawn_changes_nothing():
    epochs = EpochIterator(start=7, length=4, trained=lambda: 3)
    epochs.iterate(numbered())
    assert epochs.last_trained() == 7
