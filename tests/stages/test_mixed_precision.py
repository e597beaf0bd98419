"""Gradients are clipped in mixed precision too, by the optimisers of conf/."""

import pytest
import torch
from fixtures.fitting import Repeated, images, latents, trainer
from fixtures.system import stage

CASES = {"prior": latents(), "decoder": latents(4)}


def moved(part, clip):
    made = stage(part, "stage.lr_schedule.warmup=1", "stage.optimizer.lr=1e-3", "stage.optimizer.weight_decay=0.0")
    before = [p.detach().clone() for p in made.network.parameters()]
    trainer(2, precision="bf16-mixed", gradient_clip_val=clip).fit(made, datamodule=Repeated(CASES[part]))
    return max(float((p - q).abs().max()) for p, q in zip(made.network.parameters(), before, strict=True))


@pytest.mark.parametrize("part", CASES)
def test_a_gradient_far_below_adams_eps_moves_nothing(part):
    assert moved(part, clip=1e-14) < 1e-8 < 1e-4 < moved(part, clip=1.0)


@pytest.mark.parametrize("value", [None, 1e-14])
def test_movq_clips_by_value(value):
    more = ["stage.quantise_from=0", "stage.adversary_from=1000000", f"stage.clip_value={value or 'null'}"]
    made = stage("movq", *more, "stage.lr_schedule.warmup=1", "stage.optimizer.lr=1e-3")
    before = [p.detach().clone() for p in made.network.encoder.parameters()]
    trainer(2, precision="bf16-mixed").fit(made, datamodule=Repeated(images(4)))
    far = max(float((p - q).abs().max()) for p, q in zip(made.network.encoder.parameters(), before, strict=True))
    assert torch.isfinite(torch.tensor(far)) and (far < 1e-8) == (value is not None)
