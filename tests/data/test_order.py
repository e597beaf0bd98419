"""A set in memory is gone on with by another number of processes, or batches of another size."""

import pytest

from open_kandinsky.data import memory
from open_kandinsky.data.memory import DistinctOrder, MemoryLoader, ShuffledOrder, Table

ROWS = 47


def loaders(monkeypatch, processes, make):
    """One of each process; `make` builds its order."""
    for rank in range(processes):
        monkeypatch.setattr(memory, "rank_and_world_size", lambda rank=rank: (rank, processes))
        monkeypatch.setattr(memory, "world_size", lambda: processes)
        table = Table({}, [""] * ROWS, [str(row) for row in range(ROWS)])
        yield MemoryLoader(table=table, order=make(), trained=lambda: None)


def drawn(monkeypatch, processes, make, steps, saved=None):
    """What all processes see in some steps, and the place after them."""
    seen = []
    for loader in loaders(monkeypatch, processes, make):
        if saved is not None:
            loader.load_state_dict(saved)
        for step, batch in enumerate(loader.epochs.iterate(loader.endless(loader.epochs.last_fetched()))):
            if step == steps:
                break
            seen += [(int(key), loader.epochs.last_fetched().epoch) for key in batch["key"]]
            state = loader.state_dict()
    return seen, state


def shuffled(batch_size):
    return lambda: ShuffledOrder(rows=ROWS, batch_size=batch_size, seed=0)


def distinct(batch_size):
    return lambda: DistinctOrder(
        captions=list(map(str, range(ROWS))), groups=[None] * ROWS, batch_size=batch_size, seed=0
    )


@pytest.mark.filterwarnings("ignore:processes or batch_size have changed")
@pytest.mark.parametrize("changes", [[(1, 4), (3, 4)], [(3, 3), (1, 3), (2, 3)], [(2, 4), (2, 3), (3, 1)]])
def test_no_row_comes_twice_in_an_epoch_and_none_is_lost(monkeypatch, changes):
    seen, saved = [], None
    for processes, batch_size in changes:
        some, saved = drawn(monkeypatch, processes, shuffled(batch_size), 2, saved)
        seen += some
    assert len(set(seen)) == len(seen) == sum(2 * processes * batch_size for processes, batch_size in changes)
    processes, batch_size = changes[-1]
    steps = (ROWS - len(seen)) // (processes * batch_size)
    rest, saved = drawn(monkeypatch, processes, shuffled(batch_size), steps, saved)
    seen += rest
    assert len(set(seen)) == len(seen) > ROWS - processes * batch_size, "but for what fills no batch of all"
    after, _ = drawn(monkeypatch, processes, shuffled(batch_size), 1, saved)
    assert {epoch for _, epoch in seen} == {0} and {epoch for _, epoch in after} == {1}


@pytest.mark.filterwarnings("ignore:processes or batch_size have changed")
def test_distinct_batches_go_on_with_other_processes(monkeypatch):
    whole, _ = drawn(monkeypatch, 1, distinct(4), 11)
    first, saved = drawn(monkeypatch, 1, distinct(4), 3)
    rest, _ = drawn(monkeypatch, 2, distinct(4), 2, saved)
    assert sorted(first + rest) == sorted(whole[: 7 * 4])


def test_distinct_batches_of_another_size_are_refused(monkeypatch):
    _, saved = drawn(monkeypatch, 1, distinct(4), 3)
    with pytest.raises(ValueError, match="'batch_size': 5.*'batch_size': 4"):
        drawn(monkeypatch, 1, distinct(5), 1, saved)


def test_another_set_is_refused(monkeypatch):
    _, saved = drawn(monkeypatch, 1, shuffled(4), 3)
    with pytest.raises(ValueError, match="'rows': 47, 'seed': 1.*'seed': 0"):
        drawn(monkeypatch, 1, lambda: ShuffledOrder(rows=ROWS, batch_size=4, seed=1), 1, saved)


def test_what_has_changed_is_said(monkeypatch):
    _, saved = drawn(monkeypatch, 1, shuffled(4), 3)
    with pytest.warns(UserWarning, match="within epoch 0: a step takes 8 and took 4. None of the 12"):
        drawn(monkeypatch, 2, shuffled(4), 1, saved)
