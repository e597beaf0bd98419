"""The watchdog by a clock that the test turns, and in trainings that really stand still."""

import inspect
import json
import os
import threading

import pytest
from fixtures.fitting import trainer
from fixtures.stalls import Data, Steps, limits, stalled
from lightning.pytorch.profilers import PassThroughProfiler

from open_kandinsky.callbacks import watchdog as loop
from open_kandinsky.callbacks.phases import SAVING, WAITING, Phase, Phases
from open_kandinsky.callbacks.processes import (
    Beat,
    Heartbeats,
    describe_process,
    laggards,
    open_files,
    process_state,
    process_usage,
)
from open_kandinsky.callbacks.watchdog import Watchdog


class Hands:
    now = 1000.0

    def __call__(self):
        return self.now


class Watched:
    """A loop that does what the test says, and the watchdog over it."""

    def __init__(self, folder, **changes):
        self.hands, self.stops = Hands(), []
        self.loop = Phases(PassThroughProfiler(), self.hands)
        self.run, self.module = trainer(1, profiler=self.loop), Steps(False)
        chosen = limits(after=10, first_after=100, validation_after=200, checkpoint_after=300, stop_after=50) | changes
        self.dog = Watchdog(
            folder=str(folder), clock=self.hands, stop=lambda: self.stops.append(self.hands.now), **chosen
        )
        self.dog.watch(self.run)

    def step(self):
        self.dog.on_train_batch_end(self.run, self.module)

    def wait(self, seconds):
        """Looked at every second."""
        for _ in range(seconds):
            self.hands.now += 1
            self.dog.look()


def stands(function, code):
    """The line of a stack, as faulthandler writes it, of a function that has come to that line of code."""
    lines, first = inspect.getsourcelines(function)
    (at,) = [number for number, line in enumerate(lines, first) if line.strip() == code]
    return f'File "{inspect.getsourcefile(function)}", line {at} in {function.__name__}\n'


@pytest.fixture
def watched(tmp_path):
    return Watched(tmp_path / "beats")


def test_steps_that_end_are_no_stall(watched, capfd):
    watched.step()
    for _ in range(20):
        watched.wait(9)
        watched.step()
    assert capfd.readouterr().err == "" and watched.stops == []


def test_it_speaks_once_then_stops(watched, capfd):
    watched.step()
    watched.loop.start("run_training_epoch")
    watched.loop.start("[Strategy]SingleDeviceStrategy.training_step")
    watched.wait(9)
    assert capfd.readouterr().err == ""
    watched.wait(49)
    said = capfd.readouterr().err
    assert said.count("watchdog, process 0: ") == 1 and "no step has ended for 10 s, after step 0" in said
    assert "it is in the forward pass, for 10 s" in said and "stops in 50 s with exit code 75" in said
    assert watched.stops == []
    watched.wait(2)
    assert watched.stops == [1060.0] and "it ends with exit code 75" in capfd.readouterr().err


def test_a_step_that_comes_after_all_calls_it_off(watched, capfd):
    watched.step()
    watched.wait(30)
    watched.step()
    watched.wait(5)
    assert "it goes on, after step 0" in capfd.readouterr().err
    watched.wait(200 - 5)
    assert len(watched.stops) > 0, "and the next stall is a stall"


def test_the_first_step_may_compile(watched, capfd):
    watched.wait(99)
    assert capfd.readouterr().err == ""
    watched.wait(1)
    said = capfd.readouterr().err
    assert "no first step has ended for 100 s" in said and "it is getting ready: it opens the data" in said


def test_a_long_validation_is_none_as_long_as_batches_end(watched, capfd):
    watched.step()
    watched.dog.on_validation_start(watched.run, watched.module)
    for _ in range(5):
        watched.wait(199)
        watched.dog.on_validation_batch_end(watched.run, watched.module)
    assert capfd.readouterr().err == ""
    watched.wait(200)
    assert "no validation has ended for 200 s" in capfd.readouterr().err


def test_a_long_checkpoint_is_none_and_the_steps_after_it_have_their_time(watched, capfd):
    watched.step()
    watched.wait(5)
    watched.loop.start(SAVING)
    watched.wait(290)
    watched.loop.stop(SAVING)
    watched.wait(9)
    assert capfd.readouterr().err == ""
    watched.wait(3)
    assert "no step has ended" in capfd.readouterr().err


def test_a_checkpoint_that_hangs_is_one(watched, capfd):
    watched.step()
    watched.loop.start(SAVING)
    watched.wait(300)
    assert "it is writing a checkpoint, for 300 s" in capfd.readouterr().err


def test_waiting_for_data_tells_of_shards_and_of_who_reads(watched, capfd, tmp_path):
    with open(tmp_path / "00007.tar", "wb") as held:
        watched.run.datamodule = Data(False, workers=4)
        watched.step()
        watched.loop.start(WAITING)
        watched.wait(10)
        said = capfd.readouterr().err
        assert "it is waiting for a batch, for 10 s" in said
        assert "1 shards, 4 workers in each of 1 processes: too few shards" in said
        assert f"worker {os.getpid()}" in said and held.name in said and "MB" in said


def test_the_line_that_hangs_is_shown(watched, capfd):
    watched.step()
    watched.wait(10)
    assert stands(Watched.wait, "self.dog.look()") in capfd.readouterr().err


WORDS = {
    "[Strategy]DDPStrategy.training_step": ("in the forward pass", False),
    "[Strategy]DDPStrategy.backward": ("in the backward pass, which ends in all processes together", True),
    "[LightningModule]PriorStage.optimizer_step": ("in an optimiser's step", False),
    "run_training_epoch": ("between two steps, where processes meet", True),
    "[Callback]Preview.on_validation_end": ("in [Callback]Preview.on_validation_end", False),
}


@pytest.mark.parametrize("name", WORDS)
def test_the_innermost_phase_is_what_it_does(name):
    open_ones = [Phase("run_training_epoch", 1.0), Phase("run_training_batch", 2.0), Phase(name, 3.0)]
    found = loop.activity(open_ones, validating=False, first=False, now=9.0)
    assert (found.words, found.collective) == WORDS[name] and found.since == 3.0 and found.kind == loop.STEP


def beat(step=7, activity="in the forward pass", waits=False, at=100.0):
    return Beat(step, activity, waits, at)


def late(**beats):
    return laggards({int(name[1:]): each for name, each in beats.items()}, now=105.0, dead_after=30.0)


def test_the_process_that_is_behind_is_the_one():
    assert late(p0=beat(8, waits=True), p1=beat(7), p2=beat(8)) == {1: "is at step 7, in the forward pass"}


def test_of_processes_at_one_step_it_is_the_one_that_waits_for_none():
    assert late(p0=beat(waits=True), p1=beat(activity="waiting for a batch"), p2=beat(waits=True)) == {
        1: "is waiting for a batch"
    }
    assert late(p0=beat(waits=True), p1=beat(waits=True)) == {} and late(p0=beat(), p1=beat()) == {}


def test_one_that_has_fallen_silent_is_gone():
    assert late(p0=beat(), p1=beat(at=60.0)) == {1: "has not been heard of for 45 s"}


def test_heartbeats_go_round_and_one_process_has_none(tmp_path):
    one, other = (Heartbeats(tmp_path, rank=rank, processes=2) for rank in range(2))
    one.write(beat())
    assert other.read() == {0: beat()}
    (tmp_path / "1").write_text("{")
    assert other.read() == {0: beat()}
    Heartbeats(tmp_path / "alone", rank=0, processes=1).write(beat())
    assert not (tmp_path / "alone").exists()


def test_what_the_system_says_of_a_process(tmp_path):
    """Of this one, which reads a megabyte and holds a file open; and of one that is none."""
    before = process_usage(os.getpid())
    file = tmp_path / "1.tar"
    file.write_bytes(bytes(10**6))
    with open(file, "rb") as held:
        held.read()
        after = process_usage(os.getpid())
        assert after.read - before.read >= 10**6 and after.cpu >= before.cpu
        assert str(file) in open_files(os.getpid()) and str(file) in describe_process(os.getpid(), before, 3.0)
    assert str(file) not in open_files(os.getpid())
    assert process_state(os.getpid()) in ("runs", "sleeps")
    nobody = 2**22 + 1
    assert process_state(nobody) == "has died or cannot be looked at"
    assert process_usage(nobody) is None and open_files(nobody) == []


def test_the_states_of_a_process(tmp_path):
    folder = tmp_path / "42"
    folder.mkdir()
    (folder / "stat").write_text("42 (a name) with) D 1 2 3 4 5 6 7 8 9 10 300 200 0")
    (folder / "io").write_text("rchar: 123\nwchar: 4\n")
    assert process_state(42, tmp_path) == "waits for a disk or network file"
    assert process_usage(42, tmp_path) == (123, 500 / os.sysconf("SC_CLK_TCK"))


def test_a_training_that_ends_leaves_no_thread(tmp_path):
    run = trainer(3, Watchdog(folder=str(tmp_path), **limits()))
    run.fit(Steps(False), datamodule=Data(False, workers=0))
    for thread in threading.enumerate():
        if thread.name == "watchdog":
            thread.join(5)
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == "[]"


@pytest.mark.slow
def test_a_data_set_that_sleeps(tmp_path):
    codes, said = stalled(tmp_path, data=True, workers=1)
    assert codes == [75], said
    assert "no step has ended" in said and "it is waiting for a batch" in said and "sleeps" in said, said


@pytest.mark.slow
def test_a_forward_pass_that_hangs(tmp_path):
    codes, said = stalled(tmp_path, step=True)
    assert codes == [75], said
    assert "it is in the forward pass" in said and "worker" not in said
    assert stands(Steps.training_step, "time.sleep(FOREVER)") in said


@pytest.mark.slow
def test_a_library_that_keeps_pythons_lock_is_shown_and_then_goes_on(tmp_path):
    codes, said = stalled(tmp_path, lock=True)
    assert codes == [0] and "Timeout (0:00:01" in said, said
    assert stands(Steps.training_step, "ctypes.PyDLL(None).sleep(3)") in said


@pytest.mark.slow
def test_a_process_that_others_wait_for_is_named(tmp_path):
    codes, said = stalled(tmp_path, processes=2, data=True)
    assert 75 in codes, said
    first = said[said.index("watchdog, process 0") :].split("watchdog, process 1")[0]
    assert "process 1 is waiting for a batch: the others wait for it" in first, said
