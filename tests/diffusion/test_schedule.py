"""Noise schedules, to the last bit of the published tables."""

import json
from pathlib import Path

import pytest
import torch

from open_kandinsky.diffusion import schedule

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures" / "data" / "golden_schedules.json").read_text())
LINEAR = {"T": 1000, "beta_min": 0.00085, "beta_max": 0.012}
COSINE = {"T": 1000, "s": 0.008, "beta_max": 0.999}
TABLES = {
    ("decoder_linear_0.00085_0.012", "beta"): schedule.linear_beta(**LINEAR),
    ("decoder_linear_0.00085_0.012", "alpha_bar"): schedule.linear(**LINEAR),
    ("prior_cosine", "beta"): schedule.cosine_beta(**COSINE),
    ("prior_cosine", "alpha_bar"): schedule.cosine(**COSINE),
}


@pytest.mark.parametrize(("name", "kind"), TABLES)
def test_golden_values_to_the_bit(name, kind):
    table = TABLES[name, kind]
    assert {t: float(table[int(t)]) for t in GOLDEN[name][kind]} == GOLDEN[name][kind]


@pytest.mark.parametrize("table", [schedule.linear(**LINEAR), schedule.cosine(**COSINE)])
def test_alpha_bar_falls_from_nearly_one_to_above_zero_in_float64(table):
    assert table.dtype == torch.float64
    assert bool((table.diff() < 0).all())
    assert 0.999 < table[0] < 1
    assert table[-1] > 0


def test_linear_ends_at_its_beta_max():
    """The running sum misses it by a rounding for some T."""
    for T in range(2, 1200, 7):
        assert float(schedule.linear_beta(T=T, beta_min=0.00085, beta_max=0.012)[-1]) == 0.012
