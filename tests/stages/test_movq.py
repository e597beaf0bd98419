"""MoVQ's stage: closed forms of its loss, one step a batch, and when adversary and codebook enter."""

import pytest
import torch
from makers.fitting import Losses, Repeated, fit, images, trainer
from makers.system import stage

from open_kandinsky.stages.movq import PixelLoss


def loss(x, y, perceptual=None, **weights):
    given = dict(l1=0.0, l2=0.0, edges=0.0, lpips=0.0) | weights
    return float(PixelLoss(**given, perceptual=perceptual)(x, y))


def test_closed_forms():
    """x - y is i + 2j over rows i and columns j: neighbours differ by 1 down and by 2 across."""
    i, j = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    y = torch.rand(2, 3, 4, 4)
    x = y + (i + 2 * j)
    d = (i + 2 * j).double()
    assert loss(x, y, l1=2.0) == pytest.approx(2 * float(d.mean()), rel=1e-5)
    assert loss(x, y, l2=3.0) == pytest.approx(3 * float(d.square().mean()), rel=1e-5)
    assert loss(x, y, edges=0.5) == pytest.approx(0.5 * (1 + 2), rel=1e-5)
    assert loss(x, x, l1=1.0, l2=1.0, edges=1.0) == 0


def test_the_perceptual_distance_is_weighed():
    class Distance(torch.nn.Module):
        def forward(self, x, y):
            return x.new_tensor(3.0)

    assert loss(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), Distance(), lpips=0.1, l1=1.0) == pytest.approx(1.3)
    with pytest.raises(ValueError, match="lpips=0.1 weighs a distance that is not there"):
        loss(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), lpips=0.1)


def test_a_batch_is_one_step_though_two_optimisers_move():
    made = stage("movq", "stage.adversary_from=0", "stage.quantise_from=0")
    before = made.discriminator.net[0].weight.clone()
    run = trainer(5)
    run.fit(made, datamodule=Repeated(images(4)))
    assert run.global_step == 5
    assert not torch.equal(before, made.discriminator.net[0].weight)


def test_before_their_steps_neither_adversary_nor_codebook_moves():
    made = stage("movq", "stage.adversary_from=4", "stage.quantise_from=4")
    adversary = made.discriminator.net[0].weight.clone()
    codes = made.network.codebook.embedding.weight.clone()
    losses = Losses()
    trainer(4, losses).fit(made, datamodule=Repeated(images(4)))
    assert torch.equal(adversary, made.discriminator.net[0].weight)
    assert torch.equal(codes, made.network.codebook.embedding.weight)
    assert all("train/adversary" not in step for step in losses.curve)
    trainer(5, losses).fit(
        stage("movq", "stage.adversary_from=4", "stage.quantise_from=4"), datamodule=Repeated(images(4))
    )
    assert "train/adversary" in losses.curve[-1]


def test_the_codebook_is_filled_with_latents_of_its_first_batch():
    made = stage("movq", "stage.quantise_from=2", "stage.optimizer.lr=0.0")
    batch = images(4)
    latents = made.network.without_codebook(batch["pixels"]).z.permute(0, 2, 3, 1).flatten(0, 2)
    fit(made, batch, 3)
    distance = torch.cdist(made.network.codebook.embedding.weight, latents).amin(1)
    assert distance.max() < 1e-2 * torch.cdist(latents, latents).mean()


def test_a_codebook_that_collapses_is_warned_of():
    made = stage("movq", "stage.quantise_from=0", "stage.collapse_below=1.1", "stage.adversary_from=0")
    with pytest.warns(UserWarning, match="adversary's loss is .*: it wins"):
        fit(made, images(4), 2)


def test_figures_of_validation():
    made = stage("movq")
    module = Repeated(images(4))
    module.val_dataloader = lambda: torch.utils.data.DataLoader([0], collate_fn=lambda _: images(4))
    found = trainer(1).validate(made, datamodule=module, verbose=False)[0]
    x, y = made.eval().network.decode(made.network.encode(images(4)["pixels"])).clamp(-1, 1), images(4)["pixels"]
    error = ((x - y) / 2).square().mean()
    assert found["val/psnr"] == pytest.approx(-10 * float(error.log10()), rel=1e-4)
    assert found["val/l1"] == pytest.approx(float((x - y).abs().mean() / 2), rel=1e-4)
    assert -1 <= found["val/ssim"] <= 1
