"""Several processes train as one does: losses, weights and averages, and from each other's checkpoints."""

import os

import pytest
import torch
from fixtures.ranks import ranks
from fixtures.together import CASES, STEPS, run

from open_kandinsky.training.checkpointing import settle
from open_kandinsky.weights import checkpoint

ALONE = {}


def alone(case, steps=STEPS):
    """The same by one process, done once."""
    if (case, steps) not in ALONE:
        (ALONE[case, steps],) = ranks(1, run, case, "single", 1, steps)
    return ALONE[case, steps]


def assert_same(found, expected, steps=STEPS):
    """Losses, and the whole weights and averages, to 1e-5."""
    for step, (one, other) in enumerate(zip(found["curve"], expected["curve"][-steps:], strict=True)):
        for name in other:
            if name.startswith("train/"):
                assert one[name] == pytest.approx(other[name], abs=1e-5), (step, name)
    for name in expected["validated"]:
        assert found["validated"][name] == pytest.approx(expected["validated"][name], abs=1e-5), name
    for kind in ("weights", "average"):
        assert found[kind].keys() == expected[kind].keys()
        for name, value in expected[kind].items():
            torch.testing.assert_close(found[kind][name], value, rtol=0, atol=1e-5, msg=f"{kind} {name}")


@pytest.mark.slow
def test_two_processes_are_one():
    expected = alone("prior")
    for found in ranks(2, run, "prior", "ddp", 2):
        assert_same(found, expected)
    moved = [expected["curve"][0]["train/loss"] - step["train/loss"] for step in expected["curve"]]
    assert len(moved) == STEPS and max(map(abs, moved)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "strategy", "processes"),
    [(case, "ddp", 2) for case in CASES if case != "prior"]
    + [(case, "fsdp", 2) for case in CASES if case != "clip"]
    + [(case, strategy, 4) for case in ("prior", "decoder") for strategy in ("ddp", "fsdp")]
    + [("clip", "ddp", 4), ("movq_adversary", "ddp", 4), ("movq_adversary", "fsdp", 4)],
)
def test_many_processes_are_one(case, strategy, processes):
    for found in ranks(processes, run, case, strategy, processes):
        assert_same(found, alone(case))
        assert found["sharded"] == ["DTensor" if strategy == "fsdp" else "Parameter"]


@pytest.mark.slow
def test_what_cannot_be_sharded_is_refused():
    with pytest.raises(AssertionError, match="stage=clip with strategy=fsdp.*take strategy=ddp"):
        ranks(1, run, "clip", "fsdp", 1, 1)


@pytest.mark.slow
def test_a_checkpoint_goes_from_any_number_of_processes_to_any(tmp_path):
    """Four steps by two sharded processes, and four more by others, or by one: the same as eight by one."""
    half = tmp_path / "half.ckpt"
    ranks(2, run, "prior", "fsdp", 2, 4, (), None, str(half))
    for strategy, processes in (("fsdp", 1), ("fsdp", 4), ("ddp", 2), ("single", 1)):
        end = tmp_path / f"{strategy}{processes}.ckpt"
        found = ranks(processes, run, "prior", strategy, processes, 8, (), str(half), str(end))
        assert_same(found[0], alone("prior", 8), steps=4)
        raw, ema = checkpoint.raw(end).state, checkpoint.ema(end).state
        for name, value in found[0]["weights"].items():
            assert torch.equal(raw[name.removeprefix("network.")], value), name
        assert all(torch.equal(ema[name], value) for name, value in found[0]["average"].items())


@pytest.mark.slow
@pytest.mark.parametrize(("case", "first"), [("prior", "ddp"), ("movq_adversary", "ddp"), ("movq_adversary", "fsdp")])
def test_what_was_written_either_way_is_gone_on_from_sharded(tmp_path, case, first):
    """Before the adversary's first step, too: what is written has made none for it."""
    half = tmp_path / "half.ckpt"
    ranks(2, run, case, first, 2, 4, (), None, str(half))
    assert half.is_file() == (first == "ddp")
    found = ranks(2, run, case, "fsdp", 2, 8, (), str(half), str(half))
    assert_same(found[0], alone(case, 8), steps=4)
    assert checkpoint.is_folder(half) and [path.name for path in tmp_path.iterdir()] == ["half.ckpt"]


@pytest.mark.slow
def test_a_flipped_bit_in_the_shard_of_one_is_told_by_all(tmp_path):
    half = tmp_path / "half.ckpt"
    ranks(2, run, "prior", "fsdp", 2, 2, (), None, str(half))
    shard = half / "__1_0.distcp"
    written = bytearray(shard.read_bytes())
    written[len(written) // 2] ^= 1
    shard.write_bytes(written)
    with pytest.raises(AssertionError, match="half.ckpt: damaged, __1_0.distcp is not what was written; there is no"):
        ranks(2, run, "prior", "fsdp", 2, 4, (), str(half))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "way", "strategy"),
    [(case, way, "fsdp") for case in ("prior", "decoder") for way in ("recompute", "[compile,recompute]")]
    + [("decoder", "compile", "single"), ("movq", "recompute", "single")]
    + [("prior", "budget", "fsdp"), ("decoder", "[compile,budget]", "fsdp")],
)
def test_recomputed_and_compiled_networks_train_alike(case, way, strategy):
    """With the same names in their state dicts."""
    backend = ["stage.engine.ways.compile.backend=aot_eager"] if "compile" in way else []
    processes = 2 if strategy == "fsdp" else 1
    (*_, found) = ranks(processes, run, case, strategy, processes, 6, (f"engine={way}", *backend))
    assert_same(found, alone(case, 6), steps=6)


def folder(path, text):
    path.mkdir()
    for name in (checkpoint.META, checkpoint.INDEX):
        (path / name).write_text(text)
    return path


@pytest.mark.parametrize("stop", range(4))
def test_a_machine_that_stops_leaves_a_checkpoint_that_opens(tmp_path, monkeypatch, stop):
    """At each change that is made to the disk while one takes the place of another."""
    old, new = folder(tmp_path / "last.ckpt", "old"), folder(tmp_path / ".last.ckpt.part", "new")
    done = []

    def stopping(change):
        def changed(*given, **more):
            if len(done) == stop:
                raise InterruptedError
            done.append(change)
            return change(*given, **more)

        return changed

    for owner, name in ((type(old), "rename"), (type(old), "unlink"), (os, "rmdir")):
        monkeypatch.setattr(owner, name, stopping(getattr(owner, name)))
    try:
        settle(new, old)
    except InterruptedError:
        pass
    monkeypatch.undo()
    found = checkpoint.standing(tmp_path / "last.ckpt")
    assert checkpoint.is_folder(found)
    assert (found / checkpoint.META).read_text() == ("old" if stop < 3 else "new")


def test_an_index_that_would_run_code_is_refused(tmp_path):
    import pickle

    path = folder(tmp_path / "a.ckpt", "")
    (path / checkpoint.INDEX).write_bytes(pickle.dumps(os.system))
    with pytest.raises(ValueError, match="damaged .it would call posix.system"):
        checkpoint.read(path, "state_dict")
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        checkpoint.read(tmp_path, "state_dict")
