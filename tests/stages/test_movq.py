"""MoVQ's stage: closed forms of its loss, one step a batch, and when adversary and codebook enter."""

import pytest
import torch
from fixtures.fitting import Losses, Repeated, fit, images, trainer
from fixtures.system import stage
from lightning import Callback

from open_kandinsky.stages.movq import PixelLoss
from open_kandinsky.stages.optim import freeze_all_but


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


BALANCED = ["gan/weight=adaptive", "gan/penalty=[r1,lecam]", "stage.penalties.r1.every=2", "stage.adversary_ramp=3"]
BALANCED += ["network/discriminator=per_image", "stage.restart_unused_codes=true", "stage.usage.window=3"]
BALANCED += ["stage.adversary_lr_schedule.at=0"]


def test_figures_of_training():
    """All of the options on: each tells its figure, the codes' at the end of a window."""
    losses = Losses()
    made = stage("movq", *BALANCED, "stage.quantise_from=2", "stage.adversary_from=3")
    trainer(6, losses).fit(made, datamodule=Repeated(images(4)))
    first, fifth = (set(losses.curve[at]) for at in (0, 4))
    assert first == {"train/loss", "train/reconstruction"}
    always = {f"train/{name}" for name in ("adversary", "adversary_weight", "r1", "lecam")}
    assert fifth == first | always | {"train/code_usage", "train/codes_used"}
    assert losses.curve[3]["train/adversary_weight"] > 0 and losses.curve[3]["train/r1"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 3])
def test_the_adversarys_rate_rises_from_when_it_enters(at):
    """It enters with the fourth batch. With at=3 its rate is the autoencoder's at the same step, as in the toy."""
    warm = ["stage.lr_schedule.warmup=4", "stage.adversary_from=3", "stage.optimizer.lr=1.0", "trainer.max_steps=9"]
    rates = Rates()
    trainer(6, rates).fit(stage("movq", *warm, f"stage.adversary_lr_schedule.at={at}"), datamodule=Repeated(images(4)))
    autoencoder, adversary = (list(rates) for rates in zip(*rates.seen, strict=True))
    assert autoencoder[:4] == [0.5, 0.75, 1.0, 1.0] and autoencoder[4] > autoencoder[5]
    expected = {0: [0.25] * 3 + [0.5, 0.75, 1.0], 3: [1.0] * 3 + autoencoder[3:]}
    assert adversary == pytest.approx(expected[at])


class Rates(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])


@pytest.mark.slow
def test_only_what_is_named_is_trained():
    made = stage("movq", "stage.trained=[decoder,post_quant]", "stage.quantise_from=0", "stage.adversary_from=0")
    before = {name: p.detach().clone() for name, p in made.network.named_parameters()}
    trainer(2).fit(made, datamodule=Repeated(images(4)))
    moved = {name.partition(".")[0] for name, p in made.network.named_parameters() if not p.equal(before[name])}
    assert moved == {"decoder", "post_quant"}
    with pytest.raises(ValueError, match="stage.trained: 'adversary' is no part of the network: encoder, decoder"):
        freeze_all_but(["decoder", "adversary"], made.network)


def test_figures_of_validation():
    made = stage("movq")
    module = Repeated(images(4))
    module.val_dataloader = lambda: torch.utils.data.DataLoader([0], collate_fn=lambda _: images(4))
    found = trainer(1).validate(made, datamodule=module, verbose=False)[0]
    x, y = made.eval().network.decode(made.network.encode(images(4)["pixels"])).clamp(-1, 1), images(4)["pixels"]
    errors = ((x - y) / 2).square().mean((1, 2, 3))
    assert found["val/psnr"] == pytest.approx(-10 * float(errors.log10().mean()), rel=1e-4)
    assert found["val/l1"] == pytest.approx(float((x - y).abs().mean() / 2), rel=1e-4)
    assert -1 <= found["val/ssim"] <= 1
    made.network.quantise_latents = True
    x = made.network.decode(made.network.encode(images(4)["pixels"])).clamp(-1, 1)
    errors = ((x - y) / 2).square().mean((1, 2, 3))
    assert found["val/psnr_quantised"] == pytest.approx(-10 * float(errors.log10().mean()), rel=1e-4)
    assert found["val/psnr_quantised"] != found["val/psnr"] and -1 <= found["val/ssim_quantised"] <= 1
