"""Several jobs of one command: each checked before the first one runs, each in a folder of its own, and none twice."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from makers.system import overrides
from omegaconf import OmegaConf

from open_kandinsky import command_line, configuration, failures, sweeps

ROOT = Path(__file__).parents[1]


def jobs(*typed):
    return list(sweeps.jobs(command_line.parse(typed)))


def test_each_combination_is_a_job():
    assert jobs("seed=0,1", "name=a", "stage.drop_text=0.1,0.2") == [
        [f"seed={seed}", "name=a", f"stage.drop_text={drop}"] for seed in (0, 1) for drop in (0.1, 0.2)
    ]


def test_of_a_search_one_job_is_known():
    assert jobs("sweep=optuna", "stage.optimizer.lr=tag(log,interval(0.1,1))", "seed=3,4") == [
        ["sweep=optuna", "stage.optimizer.lr=0.1", "seed=3"]
    ]


@pytest.mark.parametrize("typed", ["launcher=slurm", "sweep=grid", "hydra/launcher=submitit_local"])
def test_a_launcher_without_jobs_is_refused(typed):
    with pytest.raises(ValueError, match=f"'{typed}' starts jobs of their own: add -m") as refusal:
        sweeps.refuse_one_job(command_line.parse([typed]))
    assert failures.message(refusal.value)
    sweeps.refuse_one_job(command_line.parse([f"{typed.partition('=')[0]}=null"]))


MISTAKES = {
    "launcher=slrm": "no such option 'launcher=slrm'; did you mean 'launcher=slurm'?",
    "hydra.launcher.partitoin=gpu": "no such key 'hydra.launcher.partitoin'; did you mean 'hydra.launcher.partition'?",
    "sweep=optna": "no such option 'sweep=optna'; did you mean 'sweep=optuna'?",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_names_the_way_out(typed):
    chosen = [] if typed.startswith(("launcher", "sweep")) else ["launcher=slurm"]
    with pytest.raises(ValueError) as refusal:
        configuration.compose("train", ["experiment=prior_toy", *chosen, typed])
    assert str(refusal.value) == MISTAKES[typed]


def test_a_plugin_that_is_not_installed_is_named():
    text = "In 'launcher/slurm': Could not find 'hydra/launcher/submitit_slurm'\nAvailable options: basic"
    told = "launcher: submitit is not installed: pip install open-kandinsky[cluster]"
    assert command_line.uninstalled(RuntimeError(text)) == told


def test_slurm_starts_as_many_tasks_as_the_trainer_has_devices():
    four = ["hydra.launcher.tasks_per_node=4", "hydra.launcher.nodes=2", "hydra.job.id=7"]
    cfg = configuration.compose("train", ["experiment=prior_toy", "launcher=slurm", *four])
    assert (cfg.trainer.devices, cfg.trainer.num_nodes) == (4, 2)
    assert (cfg.resume, cfg.run_dir) == ("auto", "runs/prior_toy/job_7"), "the same when SLURM starts it again"


def test_a_jobs_folder_is_named_after_its_values():
    def folder(*typed):
        """As Hydra composes a job, which alone knows what was typed for it."""
        with configuration.initialized(configuration.CONF, "train"):
            import hydra

            cfg = hydra.compose("train", ["experiment=prior_toy", "sweep=grid", *typed], return_hydra_config=True)
        with configuration.known_to_hydra(cfg):
            return cfg.run_dir

    assert folder("seed=1") == folder("seed=1") != folder("seed=2")


@pytest.mark.skipif(version("sqlalchemy").startswith("2"), reason="the sweeper's optuna needs SQLAlchemy 1")
class TestStudy:
    @pytest.fixture
    def study(self, tmp_path):
        import optuna

        address = f"sqlite:///{tmp_path}/new folder/study.db"
        assert sweeps.to_go("s", address, 5) == (5, 0), "nothing is there yet"
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
        assert sweeps.to_go("s", address, 5) == (3, 2) and sweeps.to_go("s", address, 2) == (0, 2)

    def test_what_was_killed_is_the_next_with_its_values_and_counts_once(self, study):
        study, address = study
        study.tell(self.trial(study, 0.1), 1.0)
        self.trial(study, 0.25)
        assert sweeps.to_go("s", address, 5)[0] == 4
        again = self.trial(study, 0.25)
        assert again.params == {"lr": 0.25}
        assert sweeps.to_go("s", address, 5)[0] == 4, "killed once more"
        study.tell(self.trial(study, 0.25), 2.0)
        assert sweeps.to_go("s", address, 5)[0] == 3


@pytest.mark.slow
def test_jobs_in_processes_of_their_own_that_are_not_trained_twice(cached, tmp_path):
    given = [o for o in overrides("prior_linear", cached, "run_dir=") if not o.startswith("run_dir=")]
    command = [sys.executable, "-m", "open_kandinsky.train", "-m", "launcher=local", "sweep=grid", *given]
    source = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "seed=0,1"], cwd=tmp_path, env=source, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    runs = sorted((tmp_path / "runs" / "prior_toy" / "sweep").iterdir())
    assert sorted(OmegaConf.load(run / "config.yaml").seed for run in runs) == [0, 1]
    assert all((run / "weights.safetensors").is_file() for run in runs)
