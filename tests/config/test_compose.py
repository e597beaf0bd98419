"""A config that does not fit stops before anything is read, with one message that names the way out."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from open_kandinsky.config import compose
from open_kandinsky.core import failures

ROOT = Path(__file__).parents[2]
TREE = {
    "train.yaml": """
defaults: [hydra: default, stage: steps, trainer: cpu, _self_, experiment: null]
seed: 0
run_dir: runs/${hydra:runtime.choices.experiment}
data: null
dims: {clip: 8}
""",
    "stage/steps.yaml": """
defaults: [/optimizer@optimizer: adamw, /network@optimizer.params: prior/tiny]
_target_: torch.optim.lr_scheduler.StepLR
step_size: 1
""",
    "network/prior/tiny.yaml": "{_target_: torch.nn.Linear, in_features: '${dims.clip}', out_features: 4}",
    "network/prior/linear.yaml": "{_target_: torch.nn.Linear, in_features: '${dims.clip}', out_features: 8}",
    "optimizer/adamw.yaml": "{_target_: torch.optim.AdamW, _partial_: true, lr: 1e-3}",
    "trainer/cpu.yaml": "{_target_: lightning.Trainer, _partial_: true, accelerator: cpu}",
    "experiment/movq_toy.yaml": """
# @package _global_
defaults: [override /network@stage.optimizer.params: prior/linear]
seed: 3
""",
    "small.yaml": "{defaults: [hydra: default, _self_], seed: 0}",
    "wanting.yaml": """
defaults: [hydra: default, _self_]
weights: ???    # a run folder or a hub id
layer:
  _target_: torch.nn.Linear
  in_features: ???
  out_features: 4
""",
    "lacking.yaml": "layer: {_target_: torch.nn.Linear, in_features: 4}",
    "foreign.yaml": "layer: {_target_: os.system, command: ls}",
    "gone.yaml": "layer: {_target_: torch.nn.Linaer}",
}


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conf of a test")
    for name, text in TREE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "hydra").mkdir()
    shutil.copy(ROOT / "conf" / "hydra" / "default.yaml", folder / "hydra")
    return folder


MISTAKES = {
    "stage.optimzer.lr=1": "no such key 'stage.optimzer'; did you mean 'stage.optimizer'?",
    "+stage.lr=1": "stage takes no 'lr'; nearest: 'stage.optimizer.lr'",
    "++stage.lr=1": "stage takes no 'lr'; nearest: 'stage.optimizer.lr'",
    "+foo=1": "no such key 'foo'",
    "+a.b._target_=torch.optim.Adam": "no such key 'a.b._target_'",
    "~stage.optimizerr": "no such key 'stage.optimizerr'; did you mean 'stage.optimizer'?",
    "exprimnt=movq_toy": "no such key 'exprimnt'; did you mean 'experiment'?",
    "experiment=movq_toi": "no such option 'experiment=movq_toi'; did you mean 'experiment=movq_toy'?",
    "network/prior=lineer": "no such option 'network/prior=lineer'; did you mean 'network/prior=linear'?",
    "network/prior=linear": "has no place in train; did you mean 'network@stage.optimizer.params=prior/linear'?",
    "+network=prior/linear": "train has no place for '+network=prior/linear'",
    "netwrk/prior=tiny": "no such group 'netwrk/prior'; did you mean 'network/prior'?",
    "+trainer.limit_val_batche=2": "trainer takes no 'limit_val_batche'; nearest: 'trainer.limit_val_batches'",
    "trainer.limit_val_batches=2": "add it with a plus, '+trainer.limit_val_batches=2'",
    "seed=1,2": "add -m to run each",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_names_the_way_out(conf, typed):
    with pytest.raises(ValueError) as refusal:
        compose.compose("train", [typed], conf)
    assert MISTAKES[typed] in str(refusal.value)
    assert failures.message(refusal.value) == str(refusal.value)


RIGHT = [
    "+trainer.limit_val_batches=2",
    "network@stage.optimizer.params=prior/linear",
    "~trainer.accelerator",
    "stage.optimizer={_target_: torch.optim.SGD, lr: 1}",
    "hydra.job.name=other",
]


@pytest.mark.parametrize("typed", RIGHT)
def test_what_fits_is_accepted(conf, typed):
    compose.compose("train", [typed], conf)


def test_the_composed_config_is_resolved_and_without_hydras_part(conf):
    cfg = compose.compose("train", ["experiment=movq_toy"], conf)
    assert (cfg.seed, cfg.run_dir, cfg.stage.optimizer.params.in_features) == (3, "runs/movq_toy", 8)
    assert "hydra" not in cfg and "${" not in OmegaConf.to_yaml(cfg)


def test_missing_values_are_listed_together_with_what_each_takes(conf):
    with pytest.raises(ValueError, match="these need a value") as refusal:
        compose.compose("wanting", [], conf)
    lines = str(refusal.value).splitlines()[1:]
    assert [line.split() for line in lines] == [
        ["weights=", "a", "run", "folder", "or", "a", "hub", "id"],
        ["layer.in_features=", "int"],
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    {
        "lacking": "layer lacks 'out_features', which torch.nn.Linear needs",
        "foreign": "layer names 'os.system' as its _target_",
        "gone": "layer: cannot find its _target_ 'torch.nn.Linaer'",
    }.items(),
)
def test_a_node_that_does_not_fit_is_refused(conf, name, text):
    with pytest.raises(ValueError, match=text):
        compose.compose(name, [], conf)


def test_save_writes_the_resolved_config(tmp_path):
    compose.save(OmegaConf.create({"a": "${b}", "b": 2}), tmp_path / "run" / "config.yaml")
    assert (tmp_path / "run" / "config.yaml").read_text() == "a: 2\nb: 2\n"
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_save_on_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "config.yaml").write_text("old")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as error:
        compose.save(OmegaConf.create({"a": 1}), tmp_path / "config.yaml")
    told = failures.message(error.value)
    assert told == f"{tmp_path / 'config.yaml'}: No space left on device; nothing was overwritten"
    assert (tmp_path / "config.yaml").read_text() == "old"


def test_a_bug_is_not_told_as_a_persons_mistake():
    for bug in (ValueError("raised by a test"), KeyError("x"), RuntimeError("x")):
        assert failures.message(bug) is None


PROGRAM = """
import sys
from pathlib import Path
from open_kandinsky.config.compose import command

@command("small", Path(sys.argv.pop(1)))
def main(cfg):
    print("ran with", cfg.seed)
    {}

main()
"""


def run(conf, folder, *arguments, body="pass"):
    (folder / "program.py").write_text(PROGRAM.format(body))
    command = [sys.executable, "program.py", str(conf), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")})


def test_a_mistyped_override_is_one_line_and_code_2(conf, tmp_path):
    done = run(conf, tmp_path, "sed=1")
    told = "open-kandinsky small: no such key 'sed'; did you mean 'seed'?\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_a_verb_runs_each_job_of_a_sweep_and_leaves_one_file(conf, tmp_path):
    done = run(conf, tmp_path, "-m", "seed=5,6")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "job 0: seed=5\nran with 5\njob 1: seed=6\nran with 6\n",
        "",
    )
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == ["program.py", "runs/sweep/multirun.yaml"]


def test_a_bug_keeps_its_traceback(conf, tmp_path):
    done = run(conf, tmp_path, body="cfg.nothing")
    assert done.returncode == 1 and "Traceback" in done.stderr and "ConfigAttributeError" in done.stderr


def test_ctrl_c_is_one_line_and_code_130(conf, tmp_path):
    done = run(conf, tmp_path, body="raise KeyboardInterrupt")
    assert (done.returncode, done.stderr) == (130, "open-kandinsky small: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [([], 0, "precompute"), (["--help"], 0, "usage:"), (["trian"], 2, "no such verb 'trian'; did you mean 'train'?")],
)
def test_the_console_command(arguments, code, text):
    command = [sys.executable, "-m", "open_kandinsky.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")})
    assert done.returncode == code and text in done.stdout + done.stderr
