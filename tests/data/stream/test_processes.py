"""Real processes with real workers: their places are gathered into one checkpoint, from which any number goes on."""

from functools import partial

import pytest
from fixtures.group import drawn, together
from fixtures.shards import sample, write_folder, write_tar

pytestmark = pytest.mark.slow


def run(folder, processes, workers, steps, saved=None):
    return together(partial(drawn, folder=folder, workers=workers, steps=steps, saved=saved), processes)


def flat(results):
    return [key for keys, _, _ in results for batch in keys for key in batch]


def test_all_save_the_same_place_and_go_on_from_it(tmp_path):
    folder = write_folder(tmp_path / "a", [9, 4, 11])
    whole = run(folder, 2, 2, 11)
    for stop in (3, 6):
        before = run(folder, 2, 2, stop)
        [saved, other] = [state for _, state, _ in before]
        assert saved == other
        after = run(folder, 2, 2, 11 - stop, saved)
        for rank in range(2):
            assert before[rank][0] + after[rank][0] == whole[rank][0]


@pytest.mark.filterwarnings("ignore:the order of samples has changed")
def test_other_processes_and_workers_share_out_the_rest(tmp_path):
    """48 samples: 2 x 2 streams have 16 of them, 3 x 1 then 12, and 1 x 2 the last 20."""
    folder = write_folder(tmp_path / "a", [19, 8, 21])
    first = run(folder, 2, 2, 4)
    second = run(folder, 3, 1, 2, first[0][1])
    third = run(folder, 1, 2, 10, second[0][1])
    seen = flat(first) + flat(second) + flat(third)
    assert len(seen) == len(set(seen)) == 48


def test_a_process_with_more_bad_samples_has_as_many_batches(tmp_path):
    """All that is broken lies in one shard: the process that has it goes on into its next epoch."""
    write_tar(tmp_path / "0.tar", {f"{at}": sample(at, **({"png": b"x"} if at % 2 else {})) for at in range(10)})
    write_tar(tmp_path / "1.tar", {f"{at}": sample(at) for at in range(10)})
    results = run(str(tmp_path), 2, 0, 5)
    assert [length for _, _, length in results] == [5, 5]
    assert [len(keys) for keys, _, _ in results] == [5, 5]
