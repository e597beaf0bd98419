"""The autoencoder's adversary."""

from functools import partial

import pytest
import torch

from open_kandinsky.networks.discriminator import PatchGAN, hinge, per_image

GROUPED = partial(per_image, groups=4)


@pytest.mark.parametrize(("layers", "side", "patches"), [(2, 32, 6), (3, 32, 2), (2, 256, 62), (3, 256, 30)])
def test_scores_for_patches(layers, side, patches):
    """The original's 30 x 30 of 256 x 256 has 3 layers; MoVQGAN's has 2."""
    with torch.device("meta"):
        assert PatchGAN(channels=64, layers=layers, norm=torch.nn.BatchNorm2d)(torch.zeros(1, 3, side, side)).shape == (
            1,
            1,
            patches,
            patches,
        )


@pytest.mark.parametrize(("layers", "field"), [(2, 34), (3, 70)])
def test_a_patch_is_as_large_as_the_papers(layers, field):
    """The pixels that one score's gradient reaches (Isola et al. 2017, 6.1.2: the 70 x 70 PatchGAN)."""
    net = PatchGAN(channels=4, layers=layers, norm=torch.nn.BatchNorm2d).eval()
    pixels = torch.rand(1, 3, 128, 128, requires_grad=True)
    scores = net(pixels)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    rows = pixels.grad.abs().sum((0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == field


def test_hinge_in_closed_form():
    real, fake = torch.tensor([2.0, 1.0, 0.5, -1.0]), torch.tensor([-3.0, -1.0, 0.0])
    assert float(hinge(real, fake)) == pytest.approx(0.5 * ((0 + 0 + 0.5 + 2) / 4 + (0 + 0 + 1) / 3))


def test_hinge_teaches_only_what_is_not_yet_told_apart():
    real, fake = torch.tensor([2.0, 0.5], requires_grad=True), torch.tensor([-2.0, 0.5], requires_grad=True)
    hinge(real, fake).backward()
    assert real.grad.tolist() == [0, -0.25]
    assert fake.grad.tolist() == [0, 0.25]


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, GROUPED])
def test_initial_weights(norm):
    torch.manual_seed(0)
    weights = {name: p.detach() for name, p in PatchGAN(channels=64, layers=2, norm=norm).named_parameters()}
    assert float(weights["net.5.weight"].std()) == pytest.approx(0.02, rel=0.02)
    assert float(weights["net.3.weight"].mean()) == pytest.approx(1, abs=0.01)


def test_our_norm_sees_one_image_at_a_time():
    """The official one does not: what else is in the batch moves an image's scores."""
    torch.manual_seed(0)
    pixels = torch.rand(4, 3, 32, 32)
    for norm, alone in ((GROUPED, True), (torch.nn.BatchNorm2d, False)):
        net = PatchGAN(channels=8, layers=2, norm=norm)
        assert torch.allclose(net(pixels)[:1], net(pixels[:1]), atol=1e-6) == alone
