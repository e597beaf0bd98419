"""A config of an older run, whose keys had other names, is the one that the same choices make now."""

import copy

import pytest
import yaml

from open_kandinsky.config import CONF, compose
from open_kandinsky.training.renamed import current
from open_kandinsky.training.run_dir import NUMERICAL, changes

OLD = "open_kandinsky."
PATHS = ["data.urls=shards", "run_dir=run"]
MOVQ = ["experiment=movq_67m", *PATHS]


def decides(key):
    return f"{key}.".startswith(tuple(f"{numerical}." for numerical in NUMERICAL))


def now(*typed):
    return compose.record(compose.compose("train", list(typed)))


def count(name, threads, folder):
    called = {"_target_": f"{OLD}data.tars.{name}", "_partial_": True}
    return {"_target_": f"{OLD}data.tars.index.Indexer", "folder": folder, "threads": threads, "count": called}


def older(config, *, restart=True, in_step=False, columns=None, ways=()):
    """The config as a run of version 0.1 wrote it."""
    old = copy.deepcopy(config)
    data, stage = old["data"], old["stage"]
    del data["parquet_columns"], data["background"], stage["restart_unused_codes"]
    kind = {"_target_": f"{OLD}data.tars.sidecars.{'NoSidecars' if columns is None else 'ParquetSidecars'}"}
    data["sidecars"] = kind if columns is None else {**kind, "columns": columns}
    counted = "index.count_stats" if data["index"].pop("count_by") == "stats" else "tar.count"
    data["index"] = count(counted, data["index"]["threads"], data["index"]["folder"])
    stage["revival"] = {"_target_": f"{OLD}stages.codes.{'Restart' if restart else 'Never'}"}
    schedule = stage["adversary_lr_schedule"]
    assert (schedule["at"] > 0) == in_step
    stage["adversary_lr_schedule"] = (
        schedule | {"_target_": f"{OLD}stages.adversary_rate.in_step"} if in_step else schedule["schedule"]
    )
    stage["engine"] = {"_target_": f"{OLD}stages.engine.Engine", "ways": list(ways)}
    return old


COMPILED = {"_target_": f"{OLD}stages.engine.Compiled", "backend": "inductor", "dynamic": False}
BUDGET = {"_target_": f"{OLD}stages.recomputing.Budget", "gigabytes": 40}


@pytest.mark.parametrize(
    ("typed", "choices"),
    [
        ([], {}),
        (["experiment=movq_toy"], {"restart": False, "in_step": True}),
        (["stage.restart_unused_codes=false", "data.index.count_by=stats"], {"restart": False}),
        (["data.parquet_columns=[punsafe]"], {"columns": ["punsafe"]}),
        (["engine=[compile,budget]"], {"ways": [COMPILED, BUDGET]}),
    ],
)
def test_an_autoencoders(typed, choices):
    config = now(*([] if "experiment=movq_toy" in typed else MOVQ), "run_dir=run", *typed)
    old = older(config, **choices)
    assert {key for key in changes(old, config) if decides(key)}, "it does differ"
    assert [text for key, text in changes(current(old), config).items() if decides(key)] == []
    assert current(config) == config, "today's is left as it is"


def test_an_inpainting_decoders():
    config = now("stage=decoder_inpainting", "data.path=cache", "trainer.max_steps=1", "run_dir=run")
    old = copy.deepcopy(config)
    old["stage"]["beside"] = {
        **old["stage"].pop("input_conditioning"),
        "_target_": f"{OLD}stages.inpainting.Inpainting",
    }
    assert changes(current(old), config) == {}


def test_a_record_of_version_0_1_is_read():
    """experiments/movq_stability has one, whose keys are compared with today's."""
    old = yaml.safe_load((CONF.parent / "experiments" / "movq_stability" / "config.yaml").read_text())
    read, config = current(old), now("experiment=movq_stability")
    assert read["stage"]["restart_unused_codes"] is True
    assert read["stage"]["adversary_lr_schedule"] == config["stage"]["adversary_lr_schedule"]
    assert {key: read["stage"][key] for key in ("penalties", "pixel_loss")} == {
        key: config["stage"][key] for key in ("penalties", "pixel_loss")
    }
