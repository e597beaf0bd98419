"""A budget of memory decides which blocks are computed again; what is learned does not depend on it."""

import logging

import pytest
import torch
from fixtures.fitting import fit, latents
from fixtures.system import stage

from open_kandinsky.stages.parallel import Cost, MemoryBudget, affordable, measure_cost, saved_for_backward

COSTS = {  # a byte of "b" saves 4 FLOPs, of "a" 3, of "c" 1
    "a": Cost(inputs=10, inside=100, flops=300),
    "b": Cost(inputs=10, inside=50, flops=200),
    "c": Cost(inputs=10, inside=40, flops=40),
    "free": Cost(inputs=0, inside=0, flops=7),
}


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (0, ""),
        (30, "free"),
        (79, "c free"),  # not "b", which has no room
        (80, "b free"),
        (120, "b c free"),
        (180, "a b free"),
        (219, "a b free"),
        (220, "a b c free"),
    ],
)
def test_what_is_dearest_to_run_again_is_kept_while_there_is_room(budget, kept):
    assert affordable(COSTS, budget) == set(kept.split())


class Twice(torch.nn.Module):
    """Keeps its input, which is there already, its weight, and one tensor of its own, for two products."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return (x @ self.weight) @ self.weight


def test_a_unit_is_counted():
    n, x = Twice(), torch.randn(3, 8, requires_grad=True)
    assert measure_cost(n, x) == Cost(inputs=3 * 8 * 4, inside=3 * 8 * 4, flops=2 * 2 * 3 * 8 * 8)


def warned(caplog):
    return [record.levelname for record in caplog.records if "blocks" in record.message] == ["WARNING"]


def losses(part, gigabytes):
    """Of five steps; what autograd keeps of blocks in the last of them; and the budget, as it was met."""
    budget = [] if gigabytes is None else ["engine=budget", f"stage.engine.ways.budget.gigabytes={gigabytes}"]
    made = stage(part, *budget, "trainer.max_steps=5")
    curve = fit(made, latents(4), 5)
    way = made.engine.ways[0] if budget else None
    return curve, way, made


@pytest.mark.parametrize(
    "part", ["prior", *(pytest.param(part, marks=pytest.mark.slow) for part in ("decoder", "prior_residual"))]
)
def test_losses_do_not_depend_on_the_budget(part, caplog):
    caplog.set_level(logging.INFO, "open_kandinsky.stages.parallel")
    plain, _, made = losses(part, None)
    _, everything, _ = losses(part, 1000)
    total = sum(cost.inputs + cost.inside for cost in everything.costs.values())
    assert everything.kept == set(everything.costs) and f"0 of {len(everything.costs)} blocks" in caplog.text
    for share in (0, 0.6):
        caplog.clear()
        found, way, _ = losses(part, share * total / 1e9)
        assert found == plain
        assert len(way.costs) == len(list(made.network.units()))
        if share == 0:
            assert not way.kept and warned(caplog)
        else:
            needed = sum(cost.inputs for cost in way.costs.values()) + sum(way.costs[unit].inside for unit in way.kept)
            assert needed <= share * total and len(way.kept) < len(way.costs)


def test_what_is_kept_is_what_was_counted():
    """Over a chain of units, seen from outside."""
    units = [Twice() for _ in range(4)]
    x = torch.randn(3, 8, requires_grad=True)
    budget = MemoryBudget(gigabytes=(4 + 2) * 96 / 1e9)  # the inputs of all, and the insides of two
    for unit in units:
        budget(unit, len(units))

    def step():
        with saved_for_backward() as sizes:
            y = x
            for unit in units:
                y = unit(y)
        y.sum().backward()
        return sizes

    step()
    sizes = step()
    weights = {unit.weight.untyped_storage()._cdata for unit in units}
    seen = sum(size for name, size in sizes.items() if name not in weights)
    assert budget.kept == set(units[:2]) and seen == (4 + 2) * 96


def test_all_runs_of_a_unit_count():
    unit, x = Twice(), torch.randn(3, 8, requires_grad=True)
    budget = MemoryBudget(gigabytes=1)
    budget(unit, 1)
    (unit(x) + unit(2 * x)).sum().backward()
    assert budget.costs[unit] == Cost(inputs=2 * 96, inside=2 * 96, flops=4 * 2 * 3 * 8 * 8)


def test_clips_blocks_which_are_given_names_are_counted_and_learn_the_same():
    """open_clip's blocks take their mask by name."""
    torch.manual_seed(0)
    pictures, found, budgets = (
        torch.randn(3, 3, 32, 32),
        [],
        [None, MemoryBudget(gigabytes=1), MemoryBudget(gigabytes=0)],
    )
    for budget in budgets:
        clip = stage("clip").network.double()
        for unit in clip.units() if budget else []:
            budget(unit, 0)
        for _ in range(2):  # one that counts, and one by what it found
            both = clip.encode_image(pictures.double()).sum() + clip.encode_text(["a", "b", "c"]).emb.square().sum()
            both.backward()
        found.append([parameter.grad for parameter in clip.parameters()])
    assert len(budgets[1].kept) == len(budgets[1].costs) == 2 and not budgets[2].kept
    for learned in found[1:]:
        torch.testing.assert_close(learned, found[0], rtol=1e-12, atol=0)
