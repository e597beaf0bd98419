"""Two processes, started by Lightning, by torchrun or by hand, are one run; and one that fails says why, once."""

import os
import subprocess
import sys
import time

import pytest
from fixtures.programs import environment
from fixtures.ranks import free_port
from fixtures.system import overrides
from fixtures.verbs import called

from open_kandinsky.core.failures import message
from open_kandinsky.training import launch

# The verb train, whose second process finds an error of ours at the third step.
BROKEN = """
from open_kandinsky import train
from open_kandinsky.stages.prior import PriorStage

step = PriorStage.training_step


def broken(self, batch, at):
    if self.global_rank == 1 and at == 2:
        raise RuntimeError("the root cause")
    return step(self, batch, at)


PriorStage.training_step = broken
if __name__ == "__main__":
    train.main()
"""
STARTERS = {
    "lightning": lambda: [sys.executable],
    "torchrun": lambda: (
        [*(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")]
        + ["--master-port", str(free_port())]
    ),
}


def started(starter, program, root, folder, strategy):
    given = [part for part in overrides("prior", root) if not part.startswith("run_dir=")]
    given += ["data.val_path=null", "trainer.devices=2", f"strategy={strategy}"]
    command = [*STARTERS[starter](), *program, *given]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=240)


@pytest.mark.slow
@pytest.mark.parametrize(("starter", "strategy"), [("lightning", "ddp"), ("torchrun", "fsdp")])
def test_there_is_one_folder_and_one_who_speaks(cached, tmp_path, starter, strategy):
    made = started(starter, ["-m", "open_kandinsky.train"], cached, tmp_path, strategy)
    assert made.returncode == 0, made.stderr
    (run,) = (tmp_path / "runs" / "prior_toy").iterdir()
    assert (run / "weights.safetensors").is_file() and (run / "checkpoints" / "last.ckpt").exists()
    name = run.relative_to(tmp_path)
    begun, trained, loss, curves = made.stdout.splitlines()
    assert (begun, trained) == (f"training in {name}, from the beginning", f"trained: {name}")
    assert loss.startswith("  train/loss ") and curves == f"  curves: {name}/metrics.csv"
    assert "Warning" not in made.stderr, made.stderr


@pytest.mark.slow
@pytest.mark.parametrize("starter", STARTERS)
def test_the_root_cause_is_shown_once_and_nobody_stays(cached, tmp_path, starter):
    (tmp_path / "broken.py").write_text(BROKEN)
    made = started(starter, [str(tmp_path / "broken.py")], cached, tmp_path, "ddp")
    assert made.returncode != 0
    assert made.stderr.count("RuntimeError: the root cause") == 1, made.stderr
    assert made.stderr.count("process 1 of 2 failed:") == 1
    assert "process 0 of 2 ends: process 1 has failed" in made.stderr and "closed by peer" not in made.stderr
    (run,) = (tmp_path / "runs" / "prior_toy").iterdir()
    assert not (run / "weights.safetensors").exists()


BY_HAND = ["+trainer.num_nodes=2", "trainer.devices=1", "strategy=ddp", "data.val_path=null"]


@pytest.fixture
def node(monkeypatch):
    """Sets what a person does on a node, who has set nothing else."""

    def node(**variables):
        for name in (*OURS, "MASTER_ADDR", "MASTER_PORT", launch.STARTED, launch.RUN_DIR):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return node


@pytest.mark.slow
def test_nodes_that_a_person_starts_name_one_folder(cached, tmp_path, node):
    """At different times, by which the folder would be named."""
    given = [part for part in overrides("prior", cached, *BY_HAND) if not part.startswith("run_dir=")]
    command, port, nodes = [sys.executable, "-m", "open_kandinsky.train", *given], free_port(), []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for number in (0, 1):
        node(NODE_RANK=number, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        nodes.append(subprocess.Popen(command, cwd=tmp_path, env=environment(), **pipes))
        time.sleep(1.5)
    (told, errors), (nothing, others) = (process.communicate(timeout=240) for process in nodes)
    assert [process.returncode for process in nodes] == [0, 0], errors + others
    (run,) = (tmp_path / "runs" / "prior_toy").iterdir()
    assert f"trained: {run.relative_to(tmp_path)}\n" in told and nothing == ""
    assert (run / "weights.safetensors").is_file()


@pytest.mark.parametrize("lost", ["MASTER_ADDR", "MASTER_PORT", "NODE_RANK"])
def test_a_node_that_would_wait_for_nobody_is_told_what_is_not_set(tmp_path, node, monkeypatch, lost):
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "NODE_RANK": 1}
    del there[lost]
    node(**there)
    with pytest.raises(
        ValueError, match=f"start it by torchrun or SLURM, or by hand .*; not set here: {lost}$"
    ) as lack:
        launch.agree(2)
    assert message(lack.value)
    launch.agree(1)
    node(**there, **{launch.RUN_DIR: tmp_path})
    launch.agree(2)
    assert launch.STARTED not in os.environ, "one process alone, and one that Lightning has started, ask nobody"


@pytest.mark.parametrize("wrong", ["MASTER_PORT", "NODE_RANK"])
def test_a_number_that_is_none_is_named(node, wrong):
    node(**{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "NODE_RANK": 1, wrong: "abc"})
    with pytest.raises(ValueError, match=f"{wrong}=abc: a whole number"):
        launch.agree(2)


def test_of_which_the_verb_makes_one_message_and_no_folder(cached, tmp_path, node, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    node(NODE_RANK=0, MASTER_ADDR="127.0.0.1")
    given = [part for part in overrides("prior", cached, *BY_HAND) if not part.startswith("run_dir=")]
    assert called("train", *given) == 2
    out, told = capfd.readouterr()
    assert out == "" and told.count("\n") == 1 and told.endswith("not set here: MASTER_PORT\n"), told
    assert not list(tmp_path.iterdir())


OURS = ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID", "WORLD_SIZE"]
CASES = [
    ({}, 0),
    ({"LOCAL_RANK": "1"}, 1),
    ({"LOCAL_RANK": "0", "NODE_RANK": "2"}, 2),
    ({"TORCHELASTIC_RUN_ID": "a", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, 3),
    ({"RANK": "3"}, 0),  # of another program, which started this one
]


@pytest.mark.parametrize(("variables", "rank"), CASES)
def test_a_process_knows_its_number_before_it_talks_to_another(monkeypatch, variables, rank):
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch.rank() == rank


def test_children_are_told_the_folder_and_nobody_after_them(monkeypatch, tmp_path):
    monkeypatch.delenv(launch.RUN_DIR, raising=False)
    with launch.known_to_children(tmp_path):
        assert os.environ[launch.RUN_DIR] == str(tmp_path)
    assert launch.RUN_DIR not in os.environ
