"""Every sample once an epoch, whoever reads, however often it is stopped, and with whatever is broken in between."""

import io
import random
from collections import Counter
from itertools import chain, islice, product

import pytest
import torch
from fixtures.streams import Layout, NamedRows, NamedShards, Run, recipe

from open_kandinsky.data.stream.layout import remaining_samples
from open_kandinsky.data.stream.plan import SourcePosition, StreamState
from open_kandinsky.data.stream.stream import Stream
from open_kandinsky.data.tar.stats import merge_stats

LAYOUTS = [Layout(1, 1), Layout(1, 3), Layout(2, 2), Layout(3, 1), Layout(4, 3)]
COUNTS = [5, 0, 7, 1, 12, 3]  # 28 samples, more streams than shards at times, and a shard without any


def maker(counts=COUNTS, **options):
    rows, unreadable = options.pop("rows", None), options.pop("unreadable", ())
    return lambda streams: recipe([NamedShards(counts, unreadable=unreadable)], rows, streams=streams, **options)


def flat(batches):
    return list(chain.from_iterable(batches))


def stored(saved):
    """As another run reads it from the disk."""
    file = io.BytesIO()
    torch.save(saved, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("batch_size", "buffer"), [(1, 1), (3, 100)])
def test_each_epoch_has_every_sample_once(layout, batch_size, buffer):
    """The streams' own epochs together, whatever part of which batch they came in."""
    make = maker(batch_size=batch_size, buffer=buffer)(layout.streams)
    for epoch in range(3):
        parts = [make.plan.assignment(0, epoch, stream) for stream in range(layout.streams)]
        sizes = [part.order.n for part in parts]
        assert sum(sizes) == 28 and max(sizes) - min(sizes) <= 1
    seen = []
    for number in range(layout.streams):
        mine = sum(make.plan.assignment(0, epoch, number).order.n for epoch in range(3))
        begin = StreamState([SourcePosition(0)])
        batches = islice(Stream(make, number=number, state=begin), mine // batch_size + 1)
        seen.append(flat(made.batch["key"] for made in batches)[:mine])
    assert Counter(flat(seen)) == dict.fromkeys(make.sources[0].keys(), 3)


def test_epochs_and_seeds_differ():
    steps = {}
    for seed in (0, 1):
        run = Run(maker(seed=seed, batch_size=4), Layout(1, 1))
        steps[seed] = [flat(flat(run.step() for _ in range(7))) for _ in range(2)]
    assert steps[0][0] != steps[0][1] and steps[0] != steps[1]
    assert all(sorted(one) == sorted(NamedShards(COUNTS).keys()) for both in steps.values() for one in both)


OPTIONS = [{}, {"buffer": 1}, {"batch_size": 5}, {"rows": NamedRows(buckets=3)}]
QUICK = [(Layout(1, 1), 0), (Layout(1, 3), 1), (Layout(2, 2), 3), (Layout(4, 3), 2)]


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        pytest.param(layout, options, marks=[] if (layout, at) in QUICK else pytest.mark.slow)
        for (at, options), layout in product(enumerate(OPTIONS), LAYOUTS)
    ],
)
def test_stopped_anywhere_it_goes_on_as_if_it_had_not(layout, options):
    make, steps = maker(unreadable=["s2/3", "s4/0", "s4/11"], **options), 2 * 28 // layout.processes // 3
    run = Run(make, layout)
    whole, saved = [], [run.saved()]
    for _ in range(steps):
        whole.append(run.step())
        saved.append(run.saved())
    for stop in range(0, steps + 1, 2):
        again = Run(make, layout, stored(saved[stop]))
        assert [again.step() for _ in range(stop, min(steps, stop + 4))] == whole[stop : stop + 4]
        if stop < steps:  # and once more, after a step
            once_more = Run(make, layout, stored(Run(make, layout, stored(saved[stop])).saved()))
            assert once_more.step() == whole[stop]


@pytest.mark.filterwarnings("ignore:the order of samples has changed")
@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 80))])
def test_any_changes_of_processes_and_workers_lose_nothing(seed):
    """Stopped at random steps, gone on with by random layouts: no sample twice in an epoch, none lost."""
    draw = random.Random(seed)
    options = dict(batch_size=draw.randint(1, 4), buffer=draw.choice([1, 3, 10, 50]), seed=seed)
    rows = NamedRows(buckets=draw.choice([1, 1, 3]), undecodable=["s2/1"])
    make = maker(unreadable=["s0/2", "s4/4", "s4/5"], rows=rows, **options)
    missing, keys = ["s2/1", "s0/2", "s4/4", "s4/5"], NamedShards(COUNTS).keys()
    saved, seen = None, []
    for _ in range(6):
        layout = Layout(draw.randint(1, 4), draw.randint(1, 3))
        run = Run(make, layout, saved)
        for _ in range(draw.randint(0, 5)):
            seen += flat(run.step())
        saved = stored(run.saved())
    assert_once(run, seen, keys, missing)


def assert_once(run, seen, keys, missing):
    """What was seen and what the run says is left of each begun epoch make these epochs, exactly."""
    states = [state for progress in run.progress for state in progress.states]
    [begins], [rest] = remaining_samples(run.plan, states)
    to_come = [f"s{shard}/{at}" for some in rest.values() for shard, a, b in some.tolist() for at in range(a, b)]
    begun = Counter(dict.fromkeys(set(keys) - set(missing), begins + len(rest)))
    found = Counter(seen) + Counter(key for key in to_come if key not in missing)
    assert found == begun


def test_what_has_changed_is_said_once():
    run = Run(maker(), Layout(2, 1))
    run.step()
    with pytest.warns(UserWarning, match=r"2 process\(es\) x 1 worker.*3 process\(es\) x 1.*22 samples of epoch 0"):
        Run(maker(), Layout(3, 1), stored(run.saved()))


@pytest.mark.parametrize(
    ("change", "named"),
    [(dict(seed=1), "seed=1.*has 0"), (dict(buffer=9), "shuffle_buffer=9.*has 4"), (None, "sources=.*other.*has.*'s'")],
)
def test_another_order_is_refused(change, named):
    run = Run(maker(), Layout(1, 1))
    run.step()
    make = maker(**change) if change else lambda streams: recipe([NamedShards(COUNTS, name="other")], streams=streams)
    with pytest.raises(ValueError, match=named):
        Run(make, Layout(1, 1), stored(run.saved()))


def test_a_checkpoint_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="in memory or in a cache"):
        Run(maker(), Layout(1, 1), {"epoch": 0, "seen": 4})


# --- what a resume costs ---


def test_what_is_over_is_neither_read_nor_decoded():
    """100 shards of 20, a buffer of 15, stopped after 1,950 of 2,000 samples."""
    shards, rows = NamedShards([20] * 100), NamedRows()
    make = lambda streams: recipe([shards], rows, streams=streams, batch_size=10, buffer=15)  # noqa: E731
    run = Run(make, Layout(1, 1))
    seen = flat(run.step()[0] for _ in range(195))
    saved = stored(run.saved())
    shards.asked.clear(), rows.decoded.clear()
    again = Run(make, Layout(1, 1), saved)
    last = flat(again.step()[0] for _ in range(5))
    assert sorted(seen + last) == sorted(shards.keys())
    asked = [f"s{shard}/{at}" for shard, wanted in shards.asked for at in wanted]
    assert sorted(asked) == sorted(last) == sorted(rows.decoded), "read and decoded: what is still to come, once"
    assert len({shard for shard, _ in shards.asked}) == len(shards.asked) < 20, "each shard is opened once"


@pytest.mark.filterwarnings("ignore:the order of samples has changed")
def test_a_state_is_small():
    run = Run(maker([1000] * 50, buffer=500, batch_size=64), Layout(2, 2))
    for _ in range(20):
        run.step()
    run = Run(maker([1000] * 50, buffer=500, batch_size=64), Layout(3, 2), stored(run.saved()))
    file = io.BytesIO()
    torch.save(run.saved(), file)
    assert file.tell() < 4 * 500 * 24 + 20_000, "the spans of what four buffers held, and little else"


# --- buckets, several sources ---


def test_a_batch_is_of_one_bucket_and_what_waits_is_not_lost():
    make = maker([40, 40], rows=NamedRows(buckets=5), batch_size=4)
    run = Run(make, Layout(1, 2))
    batches = flat(run.step() for _ in range(37))
    assert all(len({NamedRows(buckets=5).bucket(type("E", (), {"key": k})) for k in keys}) == 1 for keys in batches)
    assert any(state.waiting for state in run.progress[0].states)
    assert_once(run, flat(batches), NamedShards([40, 40]).keys(), ())


def test_a_smaller_batch_takes_what_waits():
    big, small = (maker([40, 40], rows=NamedRows(buckets=3), batch_size=size) for size in (8, 2))
    run = Run(big, Layout(1, 1))
    seen = flat(flat(run.step() for _ in range(5)))
    assert len(run.progress[0].states[0].waiting) > 4
    again = Run(small, Layout(1, 1), stored(run.saved()))
    seen += flat(flat(again.step() for _ in range(30)))
    assert_once(again, seen, NamedShards([40, 40]).keys(), ())


def sources_maker(weights, counts=((30, 30), (6,), (2, 1))):
    sources = [NamedShards(list(some), name=name) for name, some in zip("abc", counts, strict=True)]
    return lambda streams: recipe(sources, streams=streams, weights=weights, batch_size=5)


@pytest.mark.parametrize("layout", [Layout(1, 1), pytest.param(Layout(2, 4), marks=pytest.mark.slow)])
def test_sources_come_by_weight_each_with_epochs_of_its_own(layout):
    run = Run(sources_maker([2.0, 1.0, 1.0], ((60, 30), (9,), (8, 1))), layout)
    seen = flat(flat(run.step() for _ in range(400 // layout.processes)))
    shares = Counter(key[0] for key in seen)
    assert shares["a"] / len(seen) == pytest.approx(0.5, abs=0.04)
    assert shares["b"] / len(seen) == pytest.approx(0.25, abs=0.04)
    for name in "abc":
        counts = Counter(key for key in seen if key[0] == name).values()
        assert max(counts) - min(counts) <= 1 + spread_of(run, "abc".index(name))


def spread_of(run, source):
    """By how many epochs the streams of a run are apart in a source."""
    epochs = [state.positions[source].epoch for progress in run.progress for state in progress.states]
    return max(epochs) - min(epochs)


def test_a_source_of_fewer_samples_than_streams_reaches_all_of_them():
    make = sources_maker([1.0, 1.0, 1.0])(streams=7)
    for stream in range(7):
        assert sum(make.plan.assignment(2, epoch, stream).order.n for epoch in range(7)) == 3


def test_sources_are_resumed_too():
    make = sources_maker([1.0, 1.0, 3.0])
    run = Run(make, Layout(2, 2))
    for _ in range(11):
        run.step()
    again = Run(make, Layout(2, 2), stored(run.saved()))
    assert [run.step() for _ in range(20)] == [again.step() for _ in range(20)]


# --- what cannot be used ---


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize(("error", "reason"), [({}, "undecodable"), ({"error": ValueError}, "transform failed")])
def test_an_epoch_is_counted_exactly(streams, error, reason):
    """A transform of somebody's own may raise a plain ValueError."""
    rows = NamedRows(undecodable=["s0/1", "s5/0"], **error)
    make = maker(unreadable=["s2/0", "s2/6", "s4/11"], rows=rows, batch_size=2)(streams)
    latest = []
    for number in range(streams):
        stats = {}
        for made in islice(Stream(make, number=number, state=StreamState([SourcePosition(0)])), 20):
            stats |= made.stats
        latest.append(stats)
    tally = merge_stats([stats[0, 0] for stats in latest], 1.0)
    assert (tally.seen, tally.bad) == (28, 5)
    assert {name: found.count for name, found in tally.reasons.items()} == {"unreadable": 3, reason: 2}


def test_bad_samples_that_come_first_do_not_stop_a_good_set():
    """60 of 2,000 are broken, and a stream meets them all before it has made a batch."""
    unreadable = [f"s0/{at}" for at in range(60)]
    make = maker([100] * 20, unreadable=unreadable, max_bad_share=0.05, batch_size=512, buffer=2000)(1)
    made = next(iter(Stream(make, number=0, state=StreamState([SourcePosition(0)]))))
    assert len(made.batch["key"]) == 512


def test_too_many_bad_samples_stop_the_stream():
    unreadable = [f"s{shard}/{at}" for shard in range(40) for at in range(10)]
    make = maker([50] * 40, unreadable=unreadable, max_bad_share=0.1, batch_size=10)(1)
    with pytest.raises(ValueError, match="max_bad_share=0.1"):
        flat(made.batch["key"] for made in islice(Stream(make, number=0, state=StreamState([SourcePosition(0)])), 100))


@pytest.mark.parametrize("what", ["unreadable", "rows"])
def test_where_nothing_can_be_used_nothing_hangs(what):
    keys = NamedShards([60]).keys()
    options = {"unreadable": keys} if what == "unreadable" else {"rows": NamedRows(undecodable=keys)}
    make = maker([60], max_bad_share=1.0, **options)(1)
    with pytest.raises(ValueError, match="no sample can be used any more"):
        next(iter(Stream(make, number=0, state=StreamState([SourcePosition(0)]))))


def test_a_row_draws_the_same_whoever_makes_it():
    """By its epoch and key: not by process, worker, or what came before."""
    drawn = {}
    for layout, epoch in product([Layout(1, 1), Layout(2, 2)], range(2)):
        make = maker(batch_size=2)(layout.streams)
        for number in range(layout.streams):
            begin = StreamState([SourcePosition(epoch)])
            n = make.plan.assignment(0, epoch, number).order.n
            for made in islice(Stream(make, number=number, state=begin), n // 2):
                for key, draw in zip(made.batch["key"], made.batch["drawn"].tolist(), strict=True):
                    drawn.setdefault((key, epoch), set()).add(draw)
    assert all(len(draws) == 1 for draws in drawn.values())
    assert len(set.union(*drawn.values())) == len(drawn) > 50
