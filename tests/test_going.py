"""A training that a person stops, and a start that failed: what is left, what is said, and the same command again."""

import csv
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from fixtures.programs import environment
from fixtures.system import config, overrides

from open_kandinsky.core.failures import message
from open_kandinsky.train import train, train_and_report

FOREVER = ["trainer.max_steps=100000", "stage.lr_schedule.steps=100000", "data.val_path=null"]
AGAIN = "go on with the same command and run_dir=run resume=auto"


def start(typed, folder):
    """In a process group of its own, as a shell starts it; torch may have as many threads as it likes."""
    command = [sys.executable, "-m", "open_kandinsky.cli", "train", *typed]
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are deaf to Ctrl-C
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment(), **pipes, preexec_fn=hears, start_new_session=True)


def run(typed, folder):
    process = start(typed, folder)
    out, told = process.communicate(timeout=240)
    return process.returncode, out, told


def ctrl_c(process):
    """As a terminal does: to all of the group, workers too."""
    os.killpg(process.pid, signal.SIGINT)


def wait_for(there, seconds=120):
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until
        time.sleep(0.05)


def given(root, *more):
    return overrides("prior_linear", root, "run_dir=run", "trainer.log_every_n_steps=1", *more)


def rows(folder):
    curves = folder / "run" / "metrics.csv"
    return curves.read_text().count("\n") - 1 if curves.is_file() else 0


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["data.in_memory=true", "data.in_memory=false"])
def test_ctrl_c_ends_the_step_saves_and_says_how_to_go_on(cached, tmp_path, memory):
    """The stream has workers of its own, which hear Ctrl-C too."""
    typed = given(cached, *FOREVER, memory, "data.workers=2", "callbacks.checkpoint.every_n_train_steps=100000")
    process = start(typed, tmp_path)
    wait_for(lambda: rows(tmp_path) > 3)
    ctrl_c(process)
    out, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in told, told
    assert "training in run, from the beginning" in out
    assert "Ctrl-C: this step is finished and saved; once more ends at once" in told
    step = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    last = f"Ctrl-C at step {step}, saved run/checkpoints/last.ckpt; {AGAIN}"
    assert told.strip().splitlines()[-1] == f"open-kandinsky train: {last}"

    code, _, told = run(typed, tmp_path)
    assert code == 2 and told.count("\n") == 1 and "go on with it by the same command and resume=auto" in told, told
    last = typed.index("trainer.max_steps=100000")
    code, out, told = run([*typed[:last], f"trainer.max_steps={step + 2}", *typed[last + 1 :], "resume=auto"], tmp_path)
    assert code == 0, told
    assert f"training in run, going on from step {step} of run/checkpoints/last.ckpt" in out
    assert (tmp_path / "run" / "weights.safetensors").is_file()


HELD_UP = """
import time
from open_kandinsky import train
from open_kandinsky.stages.prior import PriorStage as Stage

step = Stage.training_step


def long(self, batch, at):
    if at == 3:
        open("here", "w").close()
        time.sleep(600)
    return step(self, batch, at)


Stage.training_step = long
if __name__ == "__main__":
    train.main()
"""


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(cached, tmp_path):
    """Here in a step that would take ten minutes."""
    (tmp_path / "held_up.py").write_text(HELD_UP)
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [sys.executable, "held_up.py", *given(cached, *FOREVER)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), **pipes, preexec_fn=hears, start_new_session=True
    )
    wait_for((tmp_path / "here").exists)
    ctrl_c(process)
    time.sleep(2)
    assert process.poll() is None
    begun = time.monotonic()
    ctrl_c(process)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - begun < 20
    assert told.strip().splitlines()[-1] == "open-kandinsky train: interrupted" and "Traceback" not in told, told


@pytest.mark.slow
def test_ctrl_c_before_the_first_step_leaves_no_run(cached, tmp_path):
    process = start(given(cached, *FOREVER), tmp_path)
    time.sleep(3)
    ctrl_c(process)
    _, told = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in told.replace("KeyboardInterrupt", ""), (
        told
    )
    code, _, told = run(given(cached, "trainer.max_steps=2"), tmp_path)
    assert code == 0, told


WRONG = {
    "stage.optimizer.lr=abc": "stage.optimizer.lr=abc: no number; it takes ",
    "data.batch_size=0": "data.batch_size=0: at least 1",
    "logger=wandb": "run `wandb login`, or logger.offline=true",
}


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """A person without an account."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("wrong", WRONG)
def test_a_start_that_failed_is_in_nobodys_way(cached, tmp_path, wrong):
    right = [f"run_dir='{tmp_path / 'run'}'", "trainer.max_steps=2"]
    with pytest.raises(Exception, match=WRONG[wrong]) as stop:
        train(config("prior_linear", cached, *right, wrong))
    assert message(stop.value), "a person's mistake"
    train(config("prior_linear", cached, *right))
    with pytest.raises(ValueError, match="is a run already, and none is overwritten: go on with it by .* resume=auto"):
        train(config("prior_linear", cached, *right))


def test_what_is_no_run_is_not_written_over(cached, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files and no run \(thesis.txt\): choose another"):
        train(config("prior_linear", cached, f"run_dir='{tmp_path / 'run'}'"))


@pytest.mark.filterwarnings("ignore:.*goes on with other settings")
def test_the_end_says_the_last_figures_the_best_and_where_the_curves_are(cached, tmp_path, monkeypatch, capsys):
    """The best is that of the whole curve, also where the run was gone on with."""
    monkeypatch.chdir(tmp_path)

    def ended(*more):
        each = ["trainer.val_check_interval=1", "stage.lr_schedule.steps=8", "callbacks.ema.decay=0.0", *more]
        train_and_report(config("prior", cached, "run_dir=run", *each))
        lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
        assert lines[-1] == "curves: run/metrics.csv"
        figures = lines[lines.index("trained: run") + 1 : -1]
        return {line.split()[0]: line.replace(",", "").split()[1:] for line in figures}

    for more in (["trainer.max_steps=4"], ["trainer.max_steps=8", "resume=auto", "stage.optimizer.lr=0.1"]):
        found = ended(*more)
        rows = csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines())
        curve = [float(row["val/cosine_prior"]) for row in rows if row["val/cosine_prior"]]
        best = max(range(len(curve)), key=curve.__getitem__)
        values = [f"{curve[-1]:.4g}", "best", f"{curve[best]:.4g}", "at", "step", str(best + 1)]
        assert found["val/cosine_prior"] == values and len(found["train/loss"]) == 1
    assert len(curve) == 8
