"""Two processes, started by Lightning or by torchrun, are one run; and one that fails says why, once."""

import os
import subprocess
import sys

import pytest
from makers.programs import environment
from makers.ranks import free_port
from makers.system import overrides

from open_kandinsky.runs import launch

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
    assert made.stdout == f"trained: {run.relative_to(tmp_path)}\n"
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
