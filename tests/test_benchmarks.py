"""Every claim's file runs in its quick mode, and says what a reader of results.json expects. No timing is asserted."""

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from fixtures.benchmarks import BENCHMARKS, module
from fixtures.system import PARTS, config, stage
from omegaconf import OmegaConf
from torch._subclasses.fake_tensor import FakeTensorMode

from open_kandinsky.config import compose
from open_kandinsky.stages.parallel import saved_for_backward, storages

EXPERIMENTS = BENCHMARKS.parent / "conf" / "experiment"
CLAIMS = sorted((BENCHMARKS / "claims").glob("*.py"))
FIGURES = ("ours_s", "theirs_s", "ratio", "goal", "spread")


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
        return cost.counted(cost.made(cfg), cfg)


@pytest.mark.slow
def test_memory_is_counted_of_any_stage():
    """A linear prior makes one product forward and one for its weights' gradient, and has no blocks."""
    one = counted("prior_linear")
    assert one.flops == 2 * 2 * 32 * 32 and one.weights == 32 * 32 + 32 and one.inside == 0
    for part in PARTS:
        cost = counted(part)
        assert cost.weights == sum(p.numel() for p in stage(part).parameters() if p.requires_grad)
        assert 0.2 * cost.activations < cost.inside < cost.activations


@contextmanager
def autocast_of_a_gpu():
    """By its own rules, where there is none: torch.autocast would turn itself off."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


def flash(q, k, v):
    """As a GPU attends. PyTorch, asked on a machine without one, takes another way."""
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


@pytest.mark.slow
def test_activations_are_those_that_a_gpus_autocast_keeps():
    cost, cfg = module("cost"), config("decoder", "runs", "trainer=gpu")
    with FakeTensorMode():
        expected = cost.counted(cost.made(cfg), cfg).activations
        with torch.device("cuda"), patch.object(torch.nn.functional, "scaled_dot_product_attention", flash):
            on_gpu = cost.made(cfg)
            on_gpu.alpha_bar = on_gpu.alpha_bar.cuda()
            kept = []
            for n in (1, 3):
                with saved_for_backward() as sizes, autocast_of_a_gpu():
                    on_gpu.training_step(cost.empty_batch(cfg, n), 0)
                own = storages(on_gpu.parameters())
                kept.append(sum(size for name, size in sizes.items() if name not in own))
    assert expected == (kept[1] - kept[0]) // 2
    plain = counted("decoder", "trainer=gpu", "trainer.precision=32-true").activations
    assert expected < plain < 2 * expected


def test_what_is_frozen_has_a_weight_and_an_average_alone():
    one = module("cost").Cost(flops=0, activations=0, inside=0, weights=3 * 10**8, frozen=10**9, copies=0)
    cfg = OmegaConf.create({"data": {"batch_size": 1}, "trainer": {"devices": 1, "max_steps": 1}})
    told = module("cost").report(cfg, one)
    assert told["GB of weights, gradients, moments, average"] == 5 * 1.2 + 2 * 4


RECIPES = sorted(path for path in EXPERIMENTS.rglob("*.yaml") if "of activations at" in path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_is_counted(recipe):
    """Its first lines, which a person plans with."""
    text = " ".join(recipe.read_text().replace("#", "").split())
    pattern = r"([\d.]+) GB of state, ([\d.]+) of bf16 copies, ([\d.]+) of activations at (\d+) examples"
    state, copies, activations, batch = map(float, re.search(pattern, text).groups())
    flops = float(re.search(r"([\d,]+) GFLOP an example", text)[1].replace(",", ""))
    known = "data.path=none" if "data.path=" in text else "data.urls=none"
    cost = module("cost")
    cfg = compose.compose("train", [f"experiment={recipe.relative_to(EXPERIMENTS).with_suffix('')}", known])
    with FakeTensorMode():
        told = cost.report(cfg, cost.counted(cost.made(cfg), cfg))
    assert cfg.data.batch_size == batch
    assert told["GFLOP an example"] == pytest.approx(flops, abs=1)
    assert told["GB of weights, gradients, moments, average"] == pytest.approx(state, abs=0.1)
    assert told["GB of bf16 copies"] == pytest.approx(copies, abs=0.1)
    assert told[f"GB of activations at batch_size={cfg.data.batch_size}"] == pytest.approx(activations, abs=0.1)


@pytest.mark.parametrize(
    ("devices", "processes"), [(8, 32), ([0, 1], 8), ("2", 8), (-1, None), ("-1", None), ("auto", None)]
)
def test_a_cost_is_of_all_processes_or_where_these_are_not_known_of_each(devices, processes):
    cost, trainer = module("cost"), {"devices": devices, "num_nodes": 4, "max_steps": 10}
    cfg = OmegaConf.create({"data": {"batch_size": 6}, "trainer": trainer})
    one = cost.Cost(flops=10**15, activations=1, inside=0, weights=1, frozen=0, copies=1)
    told = cost.report(cfg, one)
    of, examples = (" of each process", 60) if processes is None else ("", 60 * processes)
    assert told[f"examples{of}"] == examples
    assert told[f"A100 hours{of}"] == round(examples * 1e15 / (0.4 * 312e12) / 3600, 1)
    cfg.trainer.max_steps = -1
    assert not [name for name in cost.report(cfg, one) if "hours" in name or "examples" in name]


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
    printed = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    _, *tables = printed.strip().split("\n\n")
    for table, (rows, kinds) in zip(tables, [(6, 7), (2, 8)], strict=True):
        lines = [row for row in table.splitlines() if row.startswith("| ")]
        cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in lines]
        names, *parts = cells
        assert len(parts) == rows and {len(row) for row in cells} == {len(names)}
        for row in parts:
            shares = [int(cell.removesuffix("%")) for cell in row if cell.endswith("%")]
            assert len(shares) == kinds and abs(sum(shares) - 100) <= 4  # each is rounded
