"""Every claim's file runs in its quick mode, and says what a reader of results.json expects. No timing is asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CLAIMS = sorted((BENCHMARKS / "claims").glob("*.py"))
FIGURES = ("ours_s", "theirs_s", "ratio", "goal", "spread")


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
