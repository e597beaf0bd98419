"""The grids of timesteps, against those that the official code visits."""

import json
from pathlib import Path

import pytest
import torch

from open_kandinsky.diffusion import schedule
from open_kandinsky.diffusion.samplers import descending, last_steps, leading, spaced, uniform

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures" / "data" / "golden_schedules.json").read_text())
ALPHA_BAR = schedule.linear(T=1000, beta_min=0.00085, beta_max=0.012)
GRIDS = [spaced, uniform, leading, descending]


@pytest.mark.parametrize("n", [5, 25, 50, 100])
def test_spaced_is_the_official_respacing(n):
    """The longer golden lists are shortened by dots: their ends are compared."""
    golden = GOLDEN[f"space_timesteps_{n}"]
    ours = spaced(ALPHA_BAR, n).t.tolist()[::-1]
    head = golden.index("...") if "..." in golden else n
    tail = len(golden) - head - 1 if "..." in golden else 0
    assert len(ours) == n
    assert ours[:head] == golden[:head]
    assert ours[n - tail :] == golden[len(golden) - tail :]


def test_spaced_is_diffusers_unclip_grid_at_25():
    assert spaced(ALPHA_BAR, 25).t.tolist()[::-1] == GOLDEN["diffusers_unclip_25"]


@pytest.mark.parametrize("n", [25, 30, 50, 75, 100, 150])
def test_uniform_takes_as_many_steps_as_the_official_ddim(n):
    assert len(uniform(ALPHA_BAR, n).t) == GOLDEN[f"ddim_uniform_{n}_actual_steps"]


@pytest.mark.parametrize("n", [1, 2, 25, 30, 50, 75, 100, 150, 500, 999])
def test_leading_takes_exactly_n_steps(n):
    assert len(leading(ALPHA_BAR, n).t) == n


@pytest.mark.parametrize("n", [25, 50, 100, 500])
def test_leading_is_uniform_where_n_divides_T(n):
    assert leading(ALPHA_BAR, n).t.tolist() == uniform(ALPHA_BAR, n).t.tolist()


@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("n", [1, 2, 7, 30, 200])
def test_a_grid_descends_and_carries_the_table(spacing, n):
    grid = spacing(ALPHA_BAR, n)
    assert bool((grid.t.diff() < 0).all())
    assert 0 <= grid.t.min() and grid.t.max() <= 999
    assert grid.alpha_bar[:-1].tolist() == ALPHA_BAR[grid.t].tolist()
    assert len(grid.alpha_bar) == len(grid.t) + 1
    assert grid.alpha_bar.dtype == torch.float64


@pytest.mark.parametrize(("spacing", "end"), [(spaced, 1.0), (descending, 1.0), (uniform, 0.99915), (leading, 0.99915)])
def test_where_the_last_step_leads(spacing, end):
    assert float(spacing(ALPHA_BAR, 10).alpha_bar[-1]) == end


def test_ends_of_the_grids_in_full():
    assert spaced(ALPHA_BAR, 1).t.tolist() == [999]
    assert spaced(ALPHA_BAR, 2).t.tolist() == [999, 0]
    assert leading(ALPHA_BAR, 4).t.tolist() == [751, 501, 251, 1]
    assert descending(ALPHA_BAR, 3).t.tolist() == [999, 666, 333]


@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("n", [-1, 0, 1001])
def test_impossible_step_counts_are_refused(spacing, n):
    with pytest.raises(ValueError, match=rf"steps={n}: a schedule of 1000 timesteps allows 1 to 1000"):
        spacing(ALPHA_BAR, n)


@pytest.mark.parametrize(("spacing", "n"), [(uniform, 333), (uniform, 501), (uniform, 1000), (leading, 1000)])
def test_a_grid_past_the_end_is_refused(spacing, n):
    """The official code reads past its tables here."""
    with pytest.raises(ValueError, match="would visit t=1000, past the last, 999"):
        spacing(ALPHA_BAR, n)


@pytest.mark.parametrize("spacing", [spaced, uniform, leading, descending])
def test_one_step_begins_at_the_noisiest(spacing):
    """The official range(0, T, T) + 1 would begin at t = 1, where pure noise is taken for a finished picture."""
    assert spacing(ALPHA_BAR, 1).t.tolist() == [999]


@pytest.mark.parametrize("n", [501, 600, 750, 999])
def test_leading_spans_the_table_above_half_of_it(n):
    """Strides of one would begin at t = n; they are one and two, and none is skipped at n = 999."""
    t = leading(ALPHA_BAR, n).t
    assert len(t) == n and int(t[0]) == 999 and int(t[-1]) == 1
    assert set((-t.diff()).tolist()) <= {1, 2}


def test_a_refusal_names_the_number_that_was_asked_for():
    with pytest.raises(ValueError, match="steps=501: .* past the last, 999; 500 steps fit"):
        uniform(ALPHA_BAR, 501)


@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("n", [1, 3, 10])
def test_the_last_steps_of_a_grid(spacing, n):
    grid = spacing(ALPHA_BAR, 10)
    end = last_steps(grid, n)
    assert end.t.tolist() == grid.t.tolist()[10 - n :]
    assert end.alpha_bar.tolist() == grid.alpha_bar.tolist()[10 - n :]
