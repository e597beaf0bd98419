"""Several jobs of one command: each checked before the first one runs, each in a folder of its own, and none twice."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml
from fixtures.system import overrides
from fixtures.verbs import called
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from open_kandinsky.config import compose, sweep
from open_kandinsky.config.search import Search, split
from open_kandinsky.core import failures

ROOT = Path(__file__).parents[2]


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


class TestSearch:
    """Trials are told apart by their values, which are the overrides of their jobs."""

    @pytest.fixture
    def search(self, tmp_path):
        """The study's jobs so far, and a search of `count` trials that launches jobs by a function of their values."""
        jobs = []

        def search(count, result, *typed, at_once=1, failing=1.0):
            def launch(batch, initial_job_idx):
                jobs.extend(batch)
                return [answer(result(float(dict(one.split("=") for one in job)["lr"]))) for job in batch]

            settings = dict(study_name="s", storage=f"sqlite:///{tmp_path}/new folder/study.db", direction="minimize")
            made = Search(
                **settings,
                n_trials=count,
                n_jobs=at_once,
                max_failure_rate=failing,
                seed=0,
                sampler=optuna.samplers.RandomSampler,
                params={},
            )
            made.run(["lr=interval(0.0,1.0)", *typed], launch, tmp_path)
            return yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())

        search.jobs = jobs
        return search

    def test_the_best_of_all_trials_is_written(self, search):
        best = search(6, lambda lr: (lr - 0.3) ** 2, "seed=4")
        values = [float(job[0].removeprefix("lr=")) for job in search.jobs]
        assert len(values) == len(set(values)) == 6 and all(job[1:] == ["seed=4"] for job in search.jobs)
        nearest = min(values, key=lambda lr: abs(lr - 0.3))
        assert best["best_params"] == {"lr": nearest} and best["best_value"] == (nearest - 0.3) ** 2

    def test_what_has_ended_is_not_run_again(self, search):
        search(2, lambda lr: lr)
        search(5, lambda lr: lr)
        assert len(search.jobs) == 5 and len({job[0] for job in search.jobs}) == 5, "no draw comes twice"
        search(3, lambda lr: lr)
        assert len(search.jobs) == 5

    def test_what_was_killed_is_the_next_with_its_values_and_counts_once(self, search):
        search(1, lambda lr: lr)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                search(3, lambda lr: KeyboardInterrupt)
        search(3, lambda lr: lr)
        first, *again, last = (job[0] for job in search.jobs)
        assert len(again) == 3 and len(set(again)) == 1 and len({first, again[0], last}) == 3

    def test_a_trial_that_fails_is_one_of_them_and_is_never_the_best(self, search, capsys):
        """One diverged and has no figure, one ended by a bug."""
        results = iter([None, RuntimeError("raised by a test"), 0.5])
        assert search(3, lambda lr: next(results))["best_value"] == 0.5
        assert len(search.jobs) == 3 and capsys.readouterr().err == "trial 1 failed: RuntimeError: raised by a test\n"
        search(3, lambda lr: lr)
        assert len(search.jobs) == 3

    def test_it_stops_where_more_fail_than_may(self, search):
        results = iter([1.0, None, None, None])
        with pytest.raises(ValueError, match="2 of 2 trials failed, more than hydra.sweeper.max_failure_rate=0.5"):
            search(20, lambda lr: next(results), at_once=2, failing=0.5)
        assert len(search.jobs) == 4

    def test_a_study_of_another_optuna_is_refused_with_the_command_that_mends_it(self, search, tmp_path):
        search(1, lambda lr: lr)
        with sqlite3.connect(tmp_path / "new folder" / "study.db") as database:
            database.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
            database.execute("UPDATE version_info SET library_version = '2.10.1'")
        with pytest.raises(ValueError, match="optuna storage upgrade --storage sqlite:///"):
            search(1, lambda lr: lr)


def answer(value):
    """What Hydra's launcher returns of a job; an exception's class is one that ends the search with it."""
    if value is KeyboardInterrupt:
        raise value
    failed = isinstance(value, Exception)
    return JobReturn(status=JobStatus.FAILED if failed else JobStatus.COMPLETED, _return_value=value)


@pytest.mark.parametrize(
    ("typed", "expected"),
    {
        "interval(0,1.5)": FloatDistribution(0.0, 1.5),
        "int(interval(1,8))": IntDistribution(1, 8),
        "tag(log,interval(1e-4,1e-2))": FloatDistribution(1e-4, 1e-2, log=True),
        "tag(log,int(interval(1,64)))": IntDistribution(1, 64, log=True),
        "int(interval(0.5,4.5))": IntDistribution(0, 4),
        "range(1,7,2)": IntDistribution(1, 5, step=2),
        "range(0.0,1.0,0.25)": FloatDistribution(0.0, 0.75, step=0.25),
        "choice(a,2)": CategoricalDistribution(["a", 2]),
        "null,4": CategoricalDistribution(["null", 4]),
        "3,4": CategoricalDistribution([3, 4]),
    }.items(),
)
def test_values_to_search_are_typed_as_a_sweeps_are(typed, expected):
    space, fixed = split([f"stage.optimizer.lr={typed}", "name=a", "~logger"])
    assert space == {"stage.optimizer.lr": expected} and fixed == ["name=a", "~logger"]


def test_names_of_files_are_no_values_to_search():
    with pytest.raises(ValueError, match=r"'experiment=glob\(\*\)': a search takes an interval, a range, a choice"):
        split(["experiment=glob(*)"])


def test_a_search_without_optuna_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sweep, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"hparams_search=optuna: optuna is not installed: pip install .*\[cluster\]"):
        sweep.refuse_search_without_optuna(compose.parse(["hparams_search=optuna"]))


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


@pytest.mark.slow
def test_a_search_that_was_stopped_goes_on_with_its_trials(cached, tmp_path):
    """Trainings in processes of their own, two at once; the study says which was the best of all."""
    given = [o for o in overrides("prior_linear", cached, "run_dir=") if not o.startswith("run_dir=")]
    typed = ["hparams_search=optuna", "stage.optimizer.lr=tag(log,interval(1e-4,1e-2))", "hydra.sweeper.n_jobs=2"]
    typed += ["objective=train/loss", "+trainer.enable_checkpointing=true"]
    for trials in (1, 3):
        done = launched(given, tmp_path, *typed, f"hydra.sweeper.n_trials={trials}")
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "prior_toy" / "sweep"
    runs = [path.parent for path in folder.glob("*/weights.safetensors")]
    rates = [OmegaConf.load(run / "config.yaml").stage.optimizer.lr for run in runs]
    best = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    assert len(set(rates)) == 3 and best["best_params"]["stage.optimizer.lr"] in rates
    told = f"best trial: train/loss {best['best_value']:.4g} with stage.optimizer.lr="
    assert told in done.stdout
