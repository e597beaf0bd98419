"""Every node of conf/ names something that exists and takes exactly the arguments the node gives."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from open_kandinsky.cli import VERBS
from open_kandinsky.config import validate

CONF = Path(__file__).parents[1] / "conf"
PRIMARY = sorted(p.stem for p in CONF.glob("*.yaml") if p.stem != "quiet")
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
    assert (hydra.run.dir, hydra.output_subdir, hydra.job.chdir) == (".", None, False), f"{name}.yaml lists no quiet"


@pytest.mark.parametrize("name", PRIMARY)
def test_a_config_belongs_to_a_verb(name):
    assert name in VERBS


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_opens_with_what_it_answers(experiment):
    lines = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_" and lines[1].startswith("# ")
