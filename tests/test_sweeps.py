"""Several jobs of one command: each checked before the first one runs, each in a folder of its own, and none twice."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from makers.system import overrides
from makers.verbs import called
from omegaconf import OmegaConf

from open_kandinsky.config import compose, sweep
from open_kandinsky.core import failures

ROOT = Path(__file__).parents[1]


def jobs(*typed):
    return list(sweep.jobs(compose.parse(typed)))


def test_each_combination_is_a_job():
    assert jobs("seed=0,1", "name=a", "stage.drop_text=0.1,0.2") == [
        [f"seed={seed}", "name=a", f"stage.drop_text={drop}"] for seed in (0, 1) for drop in (0.1, 0.2)
    ]


def test_of_a_search_one_job_is_known():
    assert jobs("hparams_search=optuna", "stage.optimizer.lr=tag(log,interval(0.1,1))", "seed=3,4") == [
        ["hparams_search=optuna", "stage.optimizer.lr=0.1", "seed=3"]
    ]


@pytest.mark.parametrize("typed", ["launcher=slurm", "hparams_search=grid", "hydra/launcher=submitit_local"])
def test_a_launcher_without_jobs_is_refused(typed):
    with pytest.raises(ValueError, match=f"'{typed}' starts jobs of their own: add -m") as refusal:
        sweep.refuse_one_job(compose.parse([typed]))
    assert failures.message(refusal.value)
    sweep.refuse_one_job(compose.parse([f"{typed.partition('=')[0]}=null"]))


MISTAKES = {
    "launcher=slrm": "no such option 'launcher=slrm'; did you mean 'launcher=slurm'?",
    "hydra.launcher.partitoin=gpu": "no such key 'hydra.launcher.partitoin'; did you mean 'hydra.launcher.partition'?",
    "hparams_search=optna": "no such option 'hparams_search=optna'; did you mean 'hparams_search=optuna'?",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_names_the_way_out(typed):
    chosen = [] if typed.startswith(("launcher", "hparams_search")) else ["launcher=slurm"]
    with pytest.raises(ValueError) as refusal:
        compose.compose("train", ["experiment=prior_toy", *chosen, typed])
    assert str(refusal.value) == MISTAKES[typed]


def test_a_plugin_that_is_not_installed_is_named():
    text = "In 'launcher/slurm': Could not find 'hydra/launcher/submitit_slurm'\nAvailable options: basic"
    told = "launcher: submitit is not installed: pip install open-kandinsky[cluster]"
    assert compose.uninstalled(RuntimeError(text)) == told


def test_slurm_starts_as_many_tasks_as_the_trainer_has_devices():
    four = ["hydra.launcher.tasks_per_node=4", "hydra.launcher.nodes=2", "hydra.job.id=7"]
    cfg = compose.compose("train", ["experiment=prior_toy", "launcher=slurm", *four])
    assert (cfg.trainer.devices, cfg.trainer.num_nodes) == (4, 2)
    assert (cfg.resume, cfg.run_dir) == ("auto", "runs/prior_toy/job_7"), "the same when SLURM starts it again"


def test_a_jobs_folder_is_named_after_its_values():
    def folder(*typed):
        """As Hydra composes a job, which alone knows what was typed for it."""
        with compose.initialized(compose.CONF, "train"):
            import hydra

            cfg = hydra.compose(
                "train", ["experiment=prior_toy", "hparams_search=grid", *typed], return_hydra_config=True
            )
        with compose.known_to_hydra(cfg):
            return cfg.run_dir

    assert folder("seed=1") == folder("seed=1") != folder("seed=2")


@pytest.mark.skipif(version("sqlalchemy").startswith("2"), reason="the sweeper's optuna needs SQLAlchemy 1")
class TestStudy:
    @pytest.fixture
    def study(self, tmp_path):
        import optuna

        address = f"sqlite:///{tmp_path}/new folder/study.db"
        assert sweep.to_go("s", address, 5) == (5, 0), "nothing is there yet"
        return optuna.create_study(study_name="s", storage=address), address

    def trial(self, study, value):
        import optuna

        trial = study.ask()
        trial._suggest("lr", optuna.distributions.UniformDistribution(value, value))
        return trial

    def test_what_has_ended_is_not_run_again(self, study):
        from optuna.trial import TrialState

        study, address = study
        study.tell(self.trial(study, 0.1), 1.0)
        study.tell(self.trial(study, 0.2), state=TrialState.FAIL)
        assert sweep.to_go("s", address, 5) == (3, 2) and sweep.to_go("s", address, 2) == (0, 2)

    def test_what_was_killed_is_the_next_with_its_values_and_counts_once(self, study):
        study, address = study
        study.tell(self.trial(study, 0.1), 1.0)
        self.trial(study, 0.25)
        assert sweep.to_go("s", address, 5)[0] == 4
        again = self.trial(study, 0.25)
        assert again.params == {"lr": 0.25}
        assert sweep.to_go("s", address, 5)[0] == 4, "killed once more"
        study.tell(self.trial(study, 0.25), 2.0)
        assert sweep.to_go("s", address, 5)[0] == 3


@pytest.mark.parametrize("typed", [["seed=0,1"], ["hparams_search=optuna", "stage.optimizer.lr=interval(0,1)"]])
def test_one_folder_for_several_jobs_is_refused(typed):
    with pytest.raises(ValueError, match="run_dir=one is one folder for several jobs: leave it out") as refusal:
        sweep.refuse_one_folder(compose.parse([*typed, "run_dir=one"]))
    assert failures.message(refusal.value)
    for own in ("run_dir=runs/${hydra:job.num}", "run_dir=one,other", "resume=auto"):
        sweep.refuse_one_folder(compose.parse([*typed, own]))


def test_one_job_in_a_queue_has_the_folder_that_it_is_given():
    """As conf/launcher/slurm.yaml says it."""
    sweep.refuse_one_folder(compose.parse(["launcher=slurm", "experiment=prior_toy", "run_dir=runs/decoder"]))


@pytest.fixture
def several(cached, tmp_path, monkeypatch, capfd):
    """Of `train -m` in a folder of this test: the exit code, and what was said where."""
    monkeypatch.chdir(tmp_path)
    given = [o for o in overrides("prior_linear", cached, "run_dir=") if not o.startswith("run_dir=")]

    def several(*typed):
        code = called("train", "-m", *given, "data.val_path=null", *typed)
        return code, *capfd.readouterr()

    return several


def names(folder):
    return sorted(path.name for path in folder.glob("*"))


@pytest.mark.slow
def test_each_job_is_told_the_best_and_the_one_that_a_mistake_ended(several, tmp_path):
    """And nothing of the sweep before it."""
    (tmp_path / "runs" / "sweep").mkdir(parents=True)
    (tmp_path / "runs" / "sweep" / "failed.txt").write_text("job 7 failed\n")
    code, out, told = several("trainer.max_steps=-1,2,3", "objective=train/loss")
    wrong = "trainer.max_steps=-1: say how long to train, as in trainer.max_steps=100000"
    assert (code, told) == (2, f"open-kandinsky train: {wrong}\njob 0 failed: {wrong}\n")
    lines, runs = out.splitlines(), names(tmp_path / "runs" / "prior_toy")
    assert [line for line in lines if line.startswith("job ")] == [
        f"job {at}: trainer.max_steps={steps}" for at, steps in enumerate((-1, 2, 3))
    ]
    assert [run[-2:] for run in runs] == ["_1", "_2"]
    losses = [float(line.split()[1]) for line in lines if line.startswith("  train/loss ")]
    best = losses.index(min(losses))
    told = f"best of 2: train/loss {losses[best]:.4g} with trainer.max_steps={best + 2} in runs/prior_toy/{runs[best]}"
    assert len(losses) == 2 and lines[-1] == told


def test_jobs_that_share_a_folder_are_refused_before_the_first_one(several, tmp_path):
    code, out, told = several("seed=0,1", "run_dir=one")
    assert code == 2 and out == "" and told.count("\n") == 1 and "run_dir=one is one folder for several jobs" in told
    assert names(tmp_path) == []


@pytest.mark.slow
def test_jobs_in_processes_of_their_own_that_are_not_trained_twice(cached, tmp_path):
    given = [o for o in overrides("prior_linear", cached, "run_dir=") if not o.startswith("run_dir=")]
    done = launched(given, tmp_path, "hparams_search=grid", "seed=0,1")
    assert done.returncode == 0, done.stderr
    runs = sorted((tmp_path / "runs" / "prior_toy" / "sweep").iterdir())
    assert sorted(OmegaConf.load(run / "config.yaml").seed for run in runs) == [0, 1]
    assert all((run / "weights.safetensors").is_file() for run in runs)


def launched(given, folder, *typed):
    """Each job in a process of its own."""
    command = [sys.executable, "-m", "open_kandinsky.train", "-m", "launcher=local", *given, *typed]
    source = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=source, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_jobs_that_are_started_at_once_have_a_folder_each(cached, tmp_path):
    """Without hparams_search=grid, as conf/launcher/local.yaml has it; the third is a person's mistake."""
    given = [o for o in overrides("prior_linear", cached, "run_dir=") if not o.startswith("run_dir=")]
    done = launched(given, tmp_path, "trainer.max_steps=2,3,-1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("job 2 failed: trainer.max_steps=-1: say how long to train")
    assert done.stdout == "each job in a process of its own; what it prints: runs/sweep/jobs/%j\n"
    assert len(list((tmp_path / "runs" / "sweep" / "jobs").glob("*/*_log.out"))) == 3
    folder = tmp_path / "runs" / "prior_toy"
    steps = {name[-2:]: OmegaConf.load(folder / name / "config.yaml").trainer.max_steps for name in names(folder)}
    assert steps == {"_0": 2, "_1": 3} and len(list(folder.glob("*/weights.safetensors"))) == 2
