"""Runs that are killed, told to go, or out of disk, and started again with one and the same command."""

import csv
import os
import random
import signal
import subprocess
import time
from functools import partial

import pytest
import torch
from fixtures.killed import begun, ended, full_from_the_third, killed_in_a_checkpoint, lines, one_of_two, seen
from fixtures.ports import free_port
from fixtures.system import config
from safetensors.torch import load_file

STEPS = 30
STREAM = ["data.in_memory=false", "data.shuffle_buffer=8"]
CASES = {  # what is trained, and on which data
    "movq": ("movq", "shapes", ["stage.quantise_from=3", "stage.adversary_from=9"]),
    "prior": ("prior", "cached", []),
    "decoder": ("decoder", "cached", []),
    "movq from a stream": ("movq", "shapes", STREAM),
}


@pytest.fixture
def asked(request, tmp_path):
    """The config of a case in a folder of this test, to be given again and again."""

    def asked(case, folder, *more):
        part, root, own = CASES[case]
        none = "data.val_urls=null" if root == "shapes" else "data.val_path=null"
        each = [
            f"trainer.max_steps={STEPS}",
            "trainer.log_every_n_steps=1",
            "callbacks.checkpoint.every_n_train_steps=2",
        ]
        run_dir = f"run_dir='{tmp_path / folder}'"
        return config(part, request.getfixturevalue(root), *each, none, run_dir, "resume=auto", *own, *more)

    return asked


def wait_for(there, process, seconds=100):
    until = time.monotonic() + seconds
    while not there() and process.is_alive():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.002)


def curve(run_dir):
    rows = csv.DictReader((run_dir / "metrics.csv").read_text().splitlines())
    return [(int(row["step"]), row["train/loss"]) for row in rows if row["train/loss"]]


def last(run_dir):
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same(run_dir, whole):
    one, other = load_file(whole / "weights.safetensors"), load_file(run_dir / "weights.safetensors")
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    before, after = last(whole), last(run_dir)
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
    torch.testing.assert_close(after["callbacks"]["EMA"], before["callbacks"]["EMA"], rtol=0, atol=0)
    assert curve(run_dir) == curve(whole) and [step for step, _ in curve(run_dir)] == list(range(STEPS))


def assert_once_an_epoch(batches):
    epochs = {}
    for epoch, keys in batches:
        epochs.setdefault(epoch, []).extend(keys)
    assert len(epochs) > 1
    for epoch, keys in epochs.items():
        assert len(set(keys)) == len(keys), f"epoch {epoch} has a sample twice"
    *over, _ = epochs.values()
    assert all(set(keys) == set(over[0]) for keys in over), "every epoch that is over has every sample"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_ten_times_at_random_it_ends_as_if_uninterrupted(asked, tmp_path, case):
    """Some kills come in the first moments of a life, the others some batches later, and a little after one began.

    However late the kill, no life gets beyond three batches more than the one before could: the tenth is still alive.
    """
    assert ended(begun(asked(case, "whole"), tmp_path / "whole log")) == 0
    draws, cfg, log = random.Random(case), asked(case, "killed"), tmp_path / "killed log"
    for life in range(10):
        process = begun(cfg, log, halts_at=3 * (life + 1))
        target = lines(log) + draws.choice([0, 1, 2, 3])
        wait_for(lambda at=target: lines(log) >= at, process)
        time.sleep(draws.uniform(0, 0.1))
        process.kill()
        assert ended(process) == -signal.SIGKILL
    assert ended(begun(cfg, log)) == 0, (log / "told").read_text()
    assert_same(tmp_path / "killed", tmp_path / "whole")
    assert seen(log) == seen(tmp_path / "whole log")
    assert_once_an_epoch(seen(log))
    left = {path.name for path in (tmp_path / "killed").rglob(".*")}
    assert left == set(), "what the killed were writing is gone"


@pytest.mark.slow
def test_a_disk_that_is_full_at_a_checkpoint_costs_nothing_of_before(asked, tmp_path):
    cfg, log = asked("prior", "a"), tmp_path / "log"
    assert ended(begun(cfg, log, full_from_the_third)) == 2
    told = (log / "told").read_text()
    assert "step=00000006.ckpt: File too large; nothing was overwritten" in told and "Traceback" not in told
    assert last(tmp_path / "a")["global_step"] == 4 and not list((tmp_path / "a").rglob(".*"))
    assert ended(begun(cfg, log)) == 0
    assert ended(begun(asked("prior", "whole"), tmp_path / "whole log")) == 0
    assert_same(tmp_path / "a", tmp_path / "whole")


@pytest.mark.slow
def test_killed_in_the_middle_of_a_checkpoint(asked, tmp_path):
    cfg, log = asked("prior", "a"), tmp_path / "log"
    assert ended(begun(cfg, log, killed_in_a_checkpoint)) == -signal.SIGKILL
    (half,) = (tmp_path / "a").rglob(".*.part")
    assert half.name.startswith(".step=00000006.ckpt.") and last(tmp_path / "a")["global_step"] == 4
    assert ended(begun(cfg, log)) == 0 and not half.exists()
    assert [step for step, _ in curve(tmp_path / "a")] == list(range(STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_told_to_go_it_says_how_to_go_on(asked, tmp_path, number):
    cfg, log = asked("prior", "a", "callbacks.preemption.every=1", "trainer.max_steps=100000"), tmp_path / "log"
    process = begun(cfg, log)
    wait_for(lambda: lines(log) >= 3, process)
    for _ in range(2):
        os.kill(process.pid, number)
    assert ended(process) == 75
    first, told = (log / "told").read_text().splitlines()
    step = last(tmp_path / "a")["global_step"]
    where = f"{tmp_path}/a"
    assert first == f"training in {where}, from the beginning"
    assert told == (
        f"open-kandinsky train: {number.name} at step {step}, saved {where}/checkpoints/last.ckpt; "
        f"go on with the same command and run_dir={where} resume=auto"
    )
    assert [at for at, _ in curve(tmp_path / "a")] in (list(range(step)), list(range(step - 1)))


@pytest.mark.slow
def test_a_signal_to_every_process_of_a_run_leaves_its_workers_until_it_has_saved(asked, tmp_path):
    """As SLURM and a service manager send theirs."""
    more = ["callbacks.preemption.every=1", "trainer.max_steps=100000", "data.workers=1"]
    cfg, log = asked("movq from a stream", "a", *more), tmp_path / "log"
    process = begun(cfg, log)
    wait_for(lambda: lines(log) >= 3, process)
    every = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    assert every
    subprocess.run(["kill", "-TERM", *every, str(process.pid)], check=True)
    assert ended(process) == 75, (log / "told").read_text()
    assert "SIGTERM at step" in (log / "told").read_text() and last(tmp_path / "a")["global_step"] >= 3


@pytest.mark.slow
def test_processes_save_the_same_step_whoever_got_the_signal(asked, tmp_path):
    two = ["trainer.devices=2", "strategy=ddp", "trainer.max_steps=100000", "callbacks.preemption.every=3"]
    cfg, logs, processes = asked("prior", "a", *two), [tmp_path / "log 0", tmp_path / "log 1"], []
    port = free_port()
    for rank in (0, 1):
        processes.append(begun(cfg, logs[rank], partial(one_of_two, rank, port)))
        if rank == 0:
            wait_for(lambda: (tmp_path / "a" / ".lock").exists(), processes[0])
    wait_for(lambda: min(map(lines, logs)) >= 4, processes[0])
    os.kill(processes[1].pid, signal.SIGTERM)
    assert [ended(process) for process in processes] == [75, 75]
    assert "another process got a signal at step" in (logs[0] / "told").read_text()
    assert last(tmp_path / "a")["global_step"] % 3 == 0 and lines(logs[0]) == lines(logs[1])
