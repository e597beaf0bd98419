"""Every claim's file runs in its quick mode, and says what a reader of results.json expects. No timing is asserted."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CLAIMS = sorted((BENCHMARKS / "claims").glob("*.py"))
FIGURES = ("ours_s", "theirs_s", "ratio", "goal", "spread")


def module(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_gate_names_what_has_fallen_by_more_than_a_fifth_and_nothing_else():
    before = {"fell": 2.0, "held": 2.0, "gone": 1.0, "alone": None}
    now = {"fell": 1.59, "held": 1.61, "new": 0.1, "alone": None}
    entries, baseline = ([{"claim": k, "ratio": v} for k, v in ratios.items()] for ratios in (now, before))
    assert module("bench").losses(entries, baseline) == ["fell: 1.59x, was 2.00x"]


def test_a_claim_that_there_is_not_is_told():
    with pytest.raises(ValueError, match="ONLY=nope: there are .*caches, .*prior_sampling"):
        module("bench").chosen("nope")


def test_the_results_of_this_repository_are_of_claims_that_are_there():
    entries, baseline = (json.loads((BENCHMARKS / f"{name}.json").read_text()) for name in ("results", "baseline"))
    assert {entry["of"] for entry in entries} <= {file.stem for file in CLAIMS}
    assert {entry["claim"] for entry in baseline} <= {entry["claim"] for entry in entries}
    assert all({"machine", "commit", *FIGURES} <= entry.keys() for entry in entries)


def is_number_or_null(value):
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


@pytest.mark.slow
@pytest.mark.parametrize("file", CLAIMS, ids=lambda file: file.stem)
def test_a_claim_says_what_results_hold(file, tmp_path):
    out = tmp_path / "entries.json"
    env = {**os.environ, "OPEN_KANDINSKY_TOY": str(tmp_path / "none")}
    subprocess.run([sys.executable, str(file), "--quick", "--json", str(out)], check=True, env=env)
    entries = json.loads(out.read_text())
    assert entries
    for entry in entries:
        assert {"claim", "machine", "commit", *FIGURES} <= entry.keys()
        assert all(isinstance(entry[name], str) for name in ("claim", "machine", "commit"))
        assert all(is_number_or_null(entry[name]) for name in FIGURES)
        assert entry["ratio"] is None or entry["ratio"] > 0
    assert len({entry["claim"] for entry in entries}) == len(entries)
