"""A run's folder: which checkpoint is gone on from, what is refused, and what is kept of before."""

import csv
import os
import signal
import subprocess
import sys
from functools import cache

import pytest
import torch
from fixtures.system import config
from lightning import Callback
from omegaconf import OmegaConf

from open_kandinsky.callbacks.history import better
from open_kandinsky.callbacks.preemption import Preempted
from open_kandinsky.core.failures import message
from open_kandinsky.train import Trainer, train
from open_kandinsky.training import run_dir as runs
from open_kandinsky.training.checkpointing import WholeCheckpoints

EVERY_2 = "callbacks.checkpoint.every_n_train_steps=2"


@pytest.fixture(scope="module")
def text(cached):
    """A config as YAML, composed once; its folder is called FOLDER."""

    @cache
    def text(*more):
        steps = ["trainer.max_steps=8", "trainer.log_every_n_steps=1", "data.val_path=null", EVERY_2]
        cfg = config("prior", cached, *steps, "run_dir=FOLDER", "resume=auto", *more)
        return OmegaConf.to_yaml(cfg)

    return text


@pytest.fixture
def run(text, tmp_path):
    """Trains a prior for 8 steps into a folder of this test, or goes on with it."""
    return lambda folder, *more: train(OmegaConf.create(text(*more).replace("FOLDER", str(tmp_path / folder))))


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """Where such a run has ended that nothing has interrupted."""
    return train(OmegaConf.create(text().replace("FOLDER", str(tmp_path_factory.mktemp("whole") / "run"))))


@pytest.fixture
def at_batch_end(monkeypatch):
    """Has a function called after each batch, with its number, by a callback that stands before all others."""
    doing = []

    class Meanwhile(Callback):
        def on_train_batch_end(self, trainer, *_):
            doing[0](trainer.global_step)

    original = Trainer.__init__

    def made(self, *options, callbacks, **more):
        original(self, *options, callbacks=[Meanwhile(), *callbacks] if doing else callbacks, **more)

    monkeypatch.setattr(Trainer, "__init__", made)
    return doing


def curve(folder):
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [(int(row["step"]), row["train/loss"]) for row in rows if row["train/loss"]]


def state(folder, name="last.ckpt"):
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def assert_same(folder, whole):
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks"):
        one, other = state(folder)[name], state(whole)[name]
        if name == "callbacks":
            one, other = one["EMA"], other["EMA"]
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert curve(folder) == curve(whole) and len(curve(whole)) == 8


def checkpoint(path, age, step=0):
    """An empty but whole one, that many seconds old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"global_step": step, "weight": torch.zeros(3)}, path)
    os.utime(path, (path.stat().st_mtime - age,) * 2)
    return path


class TestNewest:
    def test_the_one_that_was_written_last_whatever_its_step(self, tmp_path):
        checkpoint(tmp_path / "step=00000009.ckpt", 60, 9)
        back = checkpoint(tmp_path / "step=00000004.ckpt", 10, 4)
        assert runs.newest(tmp_path) == back

    def test_one_that_is_cut_is_passed_over_and_told(self, tmp_path):
        whole, cut = checkpoint(tmp_path / "a.ckpt", 60), checkpoint(tmp_path / "b.ckpt", 0)
        cut.write_bytes(cut.read_bytes()[:-100])
        with pytest.warns(UserWarning, match="b.ckpt is passed over: no whole checkpoint"):
            assert runs.newest(tmp_path) == whole

    def test_a_folder_is_one_once_all_of_it_is_there(self, tmp_path):
        file, folder = checkpoint(tmp_path / "a.ckpt", 60), tmp_path / "b.ckpt"
        torch.save({"global_step": 2}, checkpoint(folder / "meta.pt", 0))
        with pytest.warns(UserWarning, match="b.ckpt is passed over: no whole checkpoint"):
            assert runs.newest(tmp_path) == file
        (folder / ".metadata").touch()
        assert runs.newest(tmp_path) == folder and runs.require_checkpoint(folder) == folder

    def test_none(self, tmp_path):
        assert runs.newest(tmp_path) is None
        (tmp_path / "a.ckpt").write_bytes(b"half")
        with pytest.warns(UserWarning), pytest.raises(ValueError, match="none of 1 checkpoint.* remove them to begin"):
            runs.newest(tmp_path)

    def test_what_is_being_written_is_none(self, tmp_path):
        (tmp_path / ".last.ckpt.somewhere.12.part").touch()
        assert runs.newest(tmp_path) is None


class TestRefused:
    def test_a_folder_of_other_things(self, tmp_path):
        (tmp_path / "thesis.tex").touch()
        for resume in (None, "auto"):
            with pytest.raises(ValueError, match=r"holds other files and no run \(thesis.tex\): choose") as refusal:
                runs.start(tmp_path, resume, is_first=True)
            assert message(refusal.value)

    def test_a_folder_that_is_another_one_each_time(self, tmp_path):
        name = tmp_path / "2026-01-31_12-00-00"
        with pytest.raises(ValueError, match="named by the clock: set run_dir, as in"):
            runs.start(name, "auto", is_first=True)
        assert not name.exists()
        name.mkdir()
        assert runs.start(name, "auto", is_first=True) is None, "a run that is there may be gone on with by its name"

    def test_a_folder_in_which_another_process_trains(self, tmp_path):
        program = (
            "import fcntl, sys\nfile = open(sys.argv[1], 'a')\n"
            "fcntl.lockf(file, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
        )
        command = [sys.executable, "-c", program, str(tmp_path / ".lock")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(ValueError, match="another process is training there"), runs.run_lock(tmp_path):
                pass
            other.kill()
        with runs.run_lock(tmp_path):
            assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        assert list(tmp_path.iterdir()) == []

    def test_an_objective_that_was_not_logged(self, run):
        folder = run("a")
        assert runs.figure(folder, "train/loss") == pytest.approx(float(curve(folder)[-1][1]))
        with pytest.raises(ValueError, match="logged no such figure; it logged .*train/gradient_norm, train/loss"):
            runs.figure(folder, "val/los")


class TestOneCommandAgainAndAgain:
    def test_a_run_that_is_over_stays_as_it_is(self, run):
        folder = run("a")
        before, weights = curve(folder), (folder / "weights.safetensors").read_bytes()
        run("a")
        assert curve(folder) == before and (folder / "weights.safetensors").read_bytes() == weights
        assert not list(folder.glob("config.*.yaml"))

    def test_killed_before_its_first_checkpoint_it_begins_anew(self, run, whole, tmp_path):
        folder = tmp_path / "a"
        folder.mkdir()
        (folder / "config.yaml").write_text("seed: 0\n")
        (folder / "metrics.csv").write_text("step,train/loss\n0,7.0\n1,6")
        with pytest.warns(UserWarning, match="goes on with other settings"):
            run("a")
        assert curve(folder) == curve(whole)

    def test_a_kill_between_a_checkpoint_and_its_row_loses_no_row(self, run, whole, monkeypatch):
        """Lightning logs a step after the callbacks that write checkpoints: step 3 is in the checkpoint of 4 alone."""
        original = WholeCheckpoints.save_checkpoint

        def killed(self, checkpoint, path, storage_options=None):
            original(self, checkpoint, path, storage_options)
            if checkpoint["global_step"] == 4:
                raise KeyError("killed")

        with monkeypatch.context() as once, pytest.raises(KeyError):
            once.setattr(WholeCheckpoints, "save_checkpoint", killed)
            folder = run("a")
        folder = run("a")
        assert_same(folder, whole)

    def test_settings_that_changed_are_told_and_kept(self, run):
        folder = run("a")
        first = (folder / "config.yaml").read_text()
        with pytest.warns(UserWarning) as told:
            run("a", "stage.drop_text=0.3", "stage.optimizer.lr=0.5", "callbacks.checkpoint.every_n_train_steps=3")
        (text,) = [str(w.message) for w in told if "other settings" in str(w.message)]
        assert "stage.drop_text: 0.1 -> 0.3" in text and "stage.optimizer.lr: 0.001 -> 0.5" in text
        assert "every_n" not in text
        assert (folder / "config.1.yaml").read_text() == first
        assert "drop_text: 0.3" in (folder / "config.yaml").read_text()

    def test_a_start_without_a_step_is_no_run(self, run, tmp_path, recwarn):
        """No settings change that nothing was trained with; and it needs no resume=auto."""
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "config.yaml").write_text("seed: 7\n")
        folder = run("a", "resume=null")
        assert not list(folder.glob("config.*.yaml"))
        assert not [str(w.message) for w in recwarn if "other settings" in str(w.message)]

    @pytest.mark.parametrize("left", ["weights.safetensors", "checkpoints/step=00000002.ckpt", "previews"])
    def test_what_a_run_has_made_is_not_written_over(self, tmp_path, left):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "config.yaml").write_text("seed: 7\n")
        (tmp_path / "metrics.csv").write_text("step,train/loss\n")
        assert runs.start(tmp_path, None, is_first=True) is None
        (tmp_path / left).touch()
        with pytest.raises(ValueError, match="is a run already, .*by the same command and resume=auto, or choose"):
            runs.start(tmp_path, None, is_first=True)


class TestEnded:
    def test_without_a_validation_the_last_loss(self, run):
        folder = run("a")
        last = float(curve(folder)[-1][1])
        assert runs.summary(folder) == [f"train/loss {last:.4g}", f"curves: {folder}/metrics.csv"]

    def test_the_best_of_before_a_resume_is_the_best(self, run, cached):
        """Up the gradient, so that each validation is worse than the one before."""
        each = [f"data.val_path='{cached}/cache/seen'", "trainer.val_check_interval=2", "stage.lr_schedule.steps=8"]
        each += ["+stage.optimizer.maximize=true", "callbacks.ema.decay=0.1"]
        run("a", *each, "trainer.max_steps=4")
        folder = run("a", *each)
        figures = {line.split()[0]: line for line in runs.summary(folder)}
        assert list(figures)[:2] == ["train/loss", "val/cosine_prior"] and "best" not in figures["train/loss"]
        rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
        found = [(float(row["val/cosine_prior"]), int(row["step"])) for row in rows if row["val/cosine_prior"]]
        (best, step), (last, _) = max(found), found[-1]
        assert step == 1 and len(found) == 4
        assert figures["val/cosine_prior"] == f"val/cosine_prior {last:.4g}, best {best:.4g} at step {step + 1}"

    @pytest.mark.parametrize(
        ("name", "values", "best"),
        [
            ("val/loss", [3.0, 1.0, 2.0], (1.0, 1)),
            ("val/psnr", [3.0, 4.0, 2.0], (4.0, 1)),
            ("val/loss", [float("nan"), 3.0, float("nan"), 4.0], (3.0, 1)),
            ("val/perplexity", [3.0, 1.0], (None, None)),
            ("train/loss", [3.0, 1.0], (None, None)),
        ],
    )
    def test_what_is_better(self, name, values, best):
        found = (None, None)
        for step, value in enumerate(values):
            found = better(name, found, (value, step))
        assert found == best


class TestPreempted:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
    def test_it_ends_its_step_and_goes_on_from_there(self, run, whole, at_batch_end, number):
        at_batch_end.append(lambda step: step == 3 and os.kill(os.getpid(), number))
        before = signal.getsignal(number)
        with pytest.raises(Preempted, match=f"{number.name} at step 3, saved .*last.ckpt"):
            run("a", "callbacks.preemption.every=1")
        assert signal.getsignal(number) is before
        at_batch_end.clear()
        assert_same(run("a"), whole)

    def test_one_process_alone_stops_at_once(self, run, at_batch_end):
        """Several ask each other every so many steps: tests/test_killed.py."""
        at_batch_end.append(lambda step: step == 3 and os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted, match="at step 3"):
            run("a", "callbacks.preemption.every=5")

    def test_not_while_gradients_are_accumulated(self, run, at_batch_end):
        """Two batches a step: the first of a step is not where a run can be left."""
        batches = []
        at_batch_end.append(lambda step: batches.append(step) or len(batches) == 3 and os.kill(os.getpid(), 15))
        two = ["+trainer.accumulate_grad_batches=2", "callbacks.preemption.every=1"]
        with pytest.raises(Preempted, match="at step 2"):
            run("a", *two)
        assert batches == [0, 1, 1, 2]
        at_batch_end.clear()
        assert_same(run("a", *two), run("whole", *two))

    @pytest.mark.parametrize("saved", [2, 4])
    def test_signals_during_a_checkpoint_wait_for_its_end(self, run, whole, monkeypatch, saved):
        original, save = torch.save, []

        def interrupted(checkpoint, file):
            save.append(checkpoint["global_step"])
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
                if save[-1] == saved:
                    os.kill(os.getpid(), number)
            original(checkpoint, file)

        with monkeypatch.context() as once, pytest.raises(Preempted, match=f"SIGTERM at step {saved + 1},"):
            once.setattr("open_kandinsky.training.checkpointing.torch.save", interrupted)
            run("a", "callbacks.preemption.every=1")
        folder = run("a")
        assert_same(folder, whole)

    def test_before_the_first_step_nothing_is_saved(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr("open_kandinsky.train.make_logger", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or None)
        with pytest.raises(Preempted, match="SIGTERM before a step was made, nothing was saved"):
            run("a", "callbacks.preemption.every=1")
        assert not (tmp_path / "a" / "checkpoints").exists()

    def test_lightnings_own_stop_is_survived(self, run, whole, monkeypatch):
        """Its handler of SIGTERM in place of ours: it raises, between two steps, what is no Exception."""
        from lightning.pytorch.utilities.exceptions import SIGTERMException

        from open_kandinsky.callbacks.preemption import Preemption

        monkeypatch.setattr(Preemption, "_listen", lambda self: None)
        monkeypatch.setattr(Trainer, "received_sigterm", property(lambda self: self.global_step == 5))
        with monkeypatch.context(), pytest.raises(SIGTERMException):
            folder = run("a")
        monkeypatch.undo()
        folder = run("a")
        assert_same(folder, whole)
