"""What is compiled is one graph: dynamo counts no break, compiles it whole, and it gives the same numbers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PROGRAM = Path(__file__).parents[1] / "fixtures" / "graphs.py"


@pytest.fixture(scope="module")
def traced():
    said = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, check=True)
    return json.loads(said.stdout.splitlines()[-1])


def test_no_graph_is_broken(traced):
    assert {name: found["breaks"] for name, found in traced.items() if found["breaks"]} == {}


def test_the_graph_gives_the_same(traced):
    assert all(found["error"] < 1e-5 for found in traced.values()), traced


def test_every_network_is_among_them(traced):
    said = {"DiffusionPrior", "DiffusionPrior.prefix", "UNet of TextImageCondition", "UNet of ImageCondition"}
    assert said | {"MoVQ.encode, True", "MoVQ.decode, False"} <= traced.keys()
