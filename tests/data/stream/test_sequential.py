"""A validation set: every sample once, whoever reads, and the same in each pass."""

import pytest
from fixtures.streams import NamedRows, NamedShards

from open_kandinsky.data.stream.loader import SequentialLoader, SequentialReader
from open_kandinsky.data.tar.stats import SampleStats

COUNTS = [5, 0, 7, 1, 12, 3]


def reader(batch_size, **options):
    rows = NamedRows(**options)
    return SequentialReader(
        shards=NamedShards(COUNTS, unreadable=["s2/1"]), prepare=rows, batch_size=batch_size, seed=0
    )


@pytest.mark.parametrize("streams", [1, 3, 40])
@pytest.mark.parametrize("batch_size", [4, 100])
@pytest.mark.parametrize("buckets", [1, 3])
def test_each_sample_once(streams, batch_size, buckets):
    of = reader(batch_size, buckets=buckets, undecodable=["s4/0"])
    made = [one for stream in range(streams) for one in of.batches(stream, streams)]
    batches = [one for one in made if not isinstance(one, SampleStats)]
    tallies = [one for one in made if isinstance(one, SampleStats)]
    keys = [key for batch in batches for key in batch["key"]]
    assert sorted(keys) == sorted(set(of.shards.keys()) - {"s2/1", "s4/0"})
    assert all(0 < len(batch["key"]) <= batch_size and len(set(batch["bucket"])) == 1 for batch in batches)
    assert sum(tally.seen for tally in tallies) == 28 and sum(tally.bad for tally in tallies) == 2


def test_in_the_order_of_the_shards():
    [batch, _] = reader(100).batches(0, 1)
    assert batch["key"] == [key for key in NamedShards(COUNTS).keys() if key != "s2/1"]


@pytest.mark.parametrize("workers", [0, 2])
def test_passes_are_alike_and_judged(workers, caplog):
    loader = SequentialLoader(reader(4), workers=workers, max_bad_share=0.1)
    first, second = ([(b["key"], b["drawn"].tolist()) for b in loader] for _ in range(2))
    assert first == second
    assert [record.getMessage()[:8] for record in caplog.records] == ["1 of 28 "] * 2
    with pytest.raises(ValueError, match="1 of 28"):
        list(SequentialLoader(reader(4), workers=workers, max_bad_share=0.01))
