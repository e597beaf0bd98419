"""Weight decay moves matrices alone, as in open_clip; and older checkpoints, whose decay moved all, say so."""

import pytest
import torch
from fixtures.system import config, stage

from open_kandinsky.core.failures import message
from open_kandinsky.stages.optim import build_optimizer
from open_kandinsky.train import train

PARTS = ["clip", "prior", "prior_residual", "decoder"]


def optimisers(made):
    found = made.configure_optimizers()
    return [found["optimizer"]] if isinstance(found, dict) else found[0]


@pytest.mark.parametrize("part", PARTS)
def test_without_a_gradient_matrices_shrink_and_vectors_stay(part):
    made = stage(part, "stage.optimizer.weight_decay=0.5", "stage.optimizer.lr=0.1", "stage.lr_schedule.warmup=0")
    for parameter in made.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: p.detach().clone() for name, p in made.network.named_parameters()}
    (optimizer,) = optimisers(made)
    optimizer.step()
    moved = {name for name, p in made.network.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in before.items() if p.ndim >= 2 and p.any()}
    assert moved and all(not name.endswith(("bias", "logit_scale", "norm_out.weight")) for name in moved)


@pytest.mark.parametrize("part", ["movq", "decoder"])
def test_without_decay_there_is_one_group_as_ever(part):
    more = [] if part == "movq" else ["stage.optimizer.weight_decay=0.0"]
    assert [len(optimizer.param_groups) for optimizer in optimisers(stage(part, *more))] == [1] * (1 + (part == "movq"))


def test_all_that_is_trained_is_in_one_group_once():
    made = stage("clip")
    (optimizer,) = optimisers(made)
    listed = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(listed) == len(set(map(id, listed))) == sum(p.requires_grad for p in made.network.parameters())


def test_a_checkpoint_whose_decay_moved_all_is_refused_with_the_way_out():
    network = torch.nn.Linear(2, 2)
    before = torch.optim.AdamW(network.parameters(), weight_decay=0.1).state_dict()
    with pytest.raises(ValueError, match=r"has 1 group\(s\) of parameters, and this one 2 .*init=RUN") as refusal:
        build_optimizer(network.parameters(), lambda p: torch.optim.AdamW(p, weight_decay=0.1)).load_state_dict(before)
    assert message(refusal.value)


@pytest.mark.parametrize("part", ["clip", "movq"])
def test_a_rate_is_logged_by_its_own_name_however_many_groups_there_are(shapes, tmp_path, part):
    more = ["trainer.log_every_n_steps=1", "data.val_urls=null", f"run_dir='{tmp_path / 'run'}'"]
    rows = (train(config(part, shapes, *more)) / "metrics.csv").read_text().splitlines()
    columns = rows[0].split(",")
    rates = [name for name in columns if name.startswith("train/lr")]
    assert rates == {"clip": ["train/lr"], "movq": ["train/lr", "train/lr_adversary"]}[part]
    assert len(rows) == 5 and all(float(row.split(",")[columns.index("train/lr")]) > 0 for row in rows[1:])
