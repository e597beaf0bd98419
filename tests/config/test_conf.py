"""Every node of conf/ names something that exists and takes exactly the arguments the node gives."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from open_kandinsky.cli import VERBS
from open_kandinsky.config import validate
from open_kandinsky.config.compose import checked
from open_kandinsky.config.compose import compose as compose_verb
from open_kandinsky.core.errors import UserError

CONF = Path(__file__).parents[2] / "conf"
PRIMARY = sorted(p.stem for p in CONF.glob("*.yaml"))
EXPERIMENTS = sorted(
    str(p.relative_to(CONF / "experiment").with_suffix("")) for p in CONF.rglob("experiment/**/*.yaml")
)
PROTOCOLS = sorted(p.stem for p in CONF.glob("protocol/*.yaml"))


def load(name, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides=list(overrides), return_hydra_config=True)


def tree(cfg):
    return {key: value for key, value in OmegaConf.to_container(cfg, resolve=False).items() if key != "hydra"}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_node_of_an_experiment_fits_its_signature(experiment):
    validate.refuse_misfits(tree(load("train", f"experiment={experiment}")))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_node_of_a_protocol_fits_its_signature(protocol):
    cfg = load("evaluate", f"protocol={protocol}", "weights=w", "out=o")
    validate.refuse_misfits(tree(cfg))
    assert (cfg.protocol.get("name") or "shapes") == protocol


@pytest.mark.parametrize("name", PRIMARY)
def test_each_node_of_a_verb_fits_its_signature(name):
    validate.refuse_misfits(tree(load(name)))


@pytest.mark.parametrize("name", PRIMARY)
def test_a_verb_makes_no_folder_of_hydras(name):
    hydra = load(name).hydra
    assert (hydra.run.dir, hydra.output_subdir, hydra.job.chdir) == (".", None, False), (
        f"{name}.yaml: no hydra: default"
    )


@pytest.mark.parametrize("name", PRIMARY)
def test_a_config_belongs_to_a_verb(name):
    assert name in VERBS


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_opens_with_what_it_answers(experiment):
    lines = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_" and lines[1].startswith("# ")


FORMER = {
    "beside=inpainting": "stage=decoder_inpainting",
    "stage.beside.smallest=0.3": "stage.input_conditioning.smallest=0.3",
    "sweep=grid": "hparams_search=grid",
    "revival=restart": "stage.restart_unused_codes=true",
    "penalty=r1_lecam": "gan/penalty=[r1,lecam]",
    "penalty=lecam": "gan/penalty=lecam",
    "adversary_rate=in_step": "stage.adversary_lr_schedule.at=${stage.adversary_from}",
    "checkpoints=newest": "callbacks.checkpoint.every_n_train_steps=2000 callbacks.checkpoint.save_top_k=5",
    "filters=laion": "data/filters=laion",
    "sidecars=parquet": "data.parquet_columns=[similarity,punsafe,pwatermark]",
    "engine=compile_recompute": "engine=[compile,recompute]",
}


@pytest.mark.parametrize("typed", FORMER)
def test_what_earlier_versions_called_otherwise_is_refused_in_one_line(typed):
    with pytest.raises(UserError) as refusal:
        compose_verb("train", ["stage=movq", "data=shards", typed])
    assert str(refusal.value) == f"{typed!r} is {FORMER[typed]!r} since version 0.2"


@pytest.mark.parametrize("now", sorted(validate.FORMER.values()))
def test_what_is_named_instead_is_there(now):
    """For a group that moved: each option of it."""
    folders = [CONF]
    chosen = [now] if "=" in now else [f"{now}={option}" for option in validate.options(now, folders)]
    assert chosen or now == "stage.input_conditioning"
    for typed in chosen:
        kind = ["stage=decoder"] if "decoder" in typed else ["stage=movq", "data=shards", "data.urls=u"]
        verb = "evaluate" if typed.startswith("protocol") else "train"
        rest = ["weights=w", "out=o", "protocol=smoke"] if verb == "evaluate" else ["trainer.max_steps=1", *kind]
        if verb == "train" and not typed.startswith("hparams_search"):
            checked(verb, [*rest, *typed.split(" ")], CONF, complete=False)
        elif verb == "evaluate":
            checked(verb, [*rest, typed], CONF, complete=True)
