"""Weights & Biases get an evaluation once, under an id that the same evaluation has everywhere."""

import json
from contextlib import nullcontext

import pytest

from open_kandinsky.core import account
from open_kandinsky.core.leases import Leases, share
from open_kandinsky.evaluation.coco_report import WandbReport

FOUND = {
    "protocol": "coco30k_default",
    "prior": "linear",
    "metrics": {"fid": 8.5, "clip_score_vit_l_14": 0.26},
    "also": {"coco30k_clean": {"fid": 8.9}},
    "n": 30000,
    "made": {"seconds_drawing": 1.0},
    "versions": {"torch": "2"},
}


@pytest.fixture
def started(monkeypatch):
    """What wandb.init was given, and what was logged."""
    wandb = pytest.importorskip("wandb")
    given, logged = [], []

    class Run:
        log = logged.append

    monkeypatch.setattr(wandb, "init", lambda **options: given.append(options) or nullcontext(Run()))
    return given, logged


def boarded(out, **changed):
    report = out / "report.html"
    report.write_text("<p>the page</p>")
    return WandbReport(out, "mine", json.loads(json.dumps(FOUND | changed)), report)


def put(out, **changed):
    share([boarded(out, **changed)], Leases(out / "claims"), seen=lambda: None)


def test_numbers_config_and_page(started, tmp_path):
    put(tmp_path)
    (given,), (logged,) = started
    assert {name: x for name, x in logged.items() if name != "report"} == {
        "fid": 8.5,
        "clip_score_vit_l_14": 0.26,
        "coco30k_clean/fid": 8.9,
    }
    assert given["project"] == "mine" and given["config"]["n"] == 30000 and given["name"] == "coco30k_default-linear"
    assert "the page" in logged["report"].html


def test_once(started, tmp_path):
    put(tmp_path)
    put(tmp_path, made={"seconds_drawing": 2.0})
    assert len(started[0]) == 1
    put(tmp_path, metrics={"fid": 8.4})
    assert len(started[0]) == 2 and len({given["id"] for given in started[0]}) == 2


def test_without_wandb(monkeypatch):
    monkeypatch.setattr(account, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"wandb=mine needs: pip install open-kandinsky\[wandb\]"):
        account.check("wandb=mine", "set WANDB_MODE=offline")
