"""The autoencoder's adversary."""

import pytest
import torch

from open_kandinsky.networks.discriminator import PatchGAN, hinge


@pytest.mark.parametrize(("layers", "side", "patches"), [(2, 32, 6), (3, 32, 2), (2, 256, 62), (3, 256, 30)])
def test_scores_for_patches(layers, side, patches):
    """The original's 30 x 30 of 256 x 256 has 3 layers; MoVQGAN's has 2."""
    with torch.device("meta"):
        assert PatchGAN(channels=64, layers=layers)(torch.zeros(1, 3, side, side)).shape == (1, 1, patches, patches)


@pytest.mark.parametrize(("layers", "field"), [(2, 34), (3, 70)])
def test_a_patch_is_as_large_as_the_papers(layers, field):
    """The pixels that one score's gradient reaches (Isola et al. 2017, 6.1.2: the 70 x 70 PatchGAN)."""
    net = PatchGAN(channels=4, layers=layers).eval()
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


def test_initial_weights():
    torch.manual_seed(0)
    weights = {name: p.detach() for name, p in PatchGAN(channels=64, layers=2).named_parameters()}
    assert float(weights["net.5.weight"].std()) == pytest.approx(0.02, rel=0.02)
    assert float(weights["net.3.weight"].mean()) == pytest.approx(1, abs=0.01)
