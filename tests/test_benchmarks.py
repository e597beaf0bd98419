"""Every claim's file runs in its quick mode, and says what a reader of results.json expects. No timing is asserted."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import instantiate
from makers.system import config, stage
from torch._subclasses.fake_tensor import FakeTensorMode

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


def test_the_table_says_what_the_results_say():
    results = json.loads((BENCHMARKS / "results.json").read_text())
    assert module("table").table(results) in (BENCHMARKS / "README.md").read_text()


def counted(part, *more):
    cost, cfg = module("cost"), config(part, "runs", *more)
    with FakeTensorMode():
        return cost.counted(instantiate(cfg.stage, _convert_="all"), cfg)


def test_memory_is_counted_of_any_stage():
    """A linear prior makes one product forward and one for its weights' gradient, and has no blocks."""
    one = counted("prior_linear")
    assert one.flops == 2 * 2 * 32 * 32 and one.weights == 32 * 32 + 32 and one.inside == 0
    for part in ("prior", "decoder"):
        cost = counted(part)
        assert cost.weights == sum(p.numel() for p in stage(part).network.parameters())
        assert 0.2 * cost.activations < cost.inside < cost.activations


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


@pytest.mark.slow
def test_a_profile_has_a_row_for_each_part():
    program = [sys.executable, str(BENCHMARKS / "profile_parts.py"), "--quick"]
    rows = subprocess.run(program, check=True, capture_output=True, text=True).stdout.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("| ")]
    names, *parts = cells
    assert len(parts) == 5 and {len(row) for row in cells} == {len(names)}
    for row in parts:
        shares = [int(cell.removesuffix("%")) for cell in row if cell.endswith("%")]
        assert len(shares) == 7 and abs(sum(shares) - 100) <= 4  # each is rounded
