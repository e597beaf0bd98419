"""The adaptive weight against the gradients that autograd computes at the real last layer."""

import pytest
import torch
from fixtures.fitting import images
from fixtures.system import stage

from open_kandinsky.stages.gan import EPSILON, AdaptiveWeight, ConstantWeight, adversary_share, last_gradient


@pytest.fixture
def losses_of_a_step():
    made = stage("movq", "network/discriminator=per_image")
    pixels = images(4)["pixels"]
    reconstruction = made.network(pixels)
    quality = made.pixel_loss(reconstruction.pixels, pixels)
    return made.network.decoder.conv_out, reconstruction, quality, -made.discriminator(reconstruction.pixels).mean()


def test_the_last_layers_gradient_is_autograds(losses_of_a_step):
    last, made, *losses = losses_of_a_step
    for loss in losses:
        (expected,) = torch.autograd.grad(loss, last.weight, retain_graph=True)
        torch.testing.assert_close(last_gradient(loss, made, last), expected, rtol=1e-4, atol=1e-7)


def test_the_ratio_of_norms(losses_of_a_step):
    last, made, quality, fooling = losses_of_a_step
    picture, adversary = (torch.autograd.grad(x, last.weight, retain_graph=True)[0].norm() for x in (quality, fooling))
    ratio = picture / (adversary + EPSILON)
    weigh = AdaptiveWeight(weight=0.8, most=1e9)
    torch.testing.assert_close(weigh(quality, fooling, made, last), 0.8 * ratio, rtol=1e-4, atol=0)
    torch.testing.assert_close(weigh(2 * quality, fooling, made, last), 1.6 * ratio, rtol=1e-4, atol=0)
    assert not weigh(quality, fooling, made, last).requires_grad


def test_the_ratio_is_clamped_though_the_adversary_is_silent(losses_of_a_step):
    last, made, quality, fooling = losses_of_a_step
    assert float(AdaptiveWeight(weight=0.8, most=10.0)(quality, 0 * fooling, made, last)) == pytest.approx(8)
    assert float(AdaptiveWeight(weight=0.5, most=1e-3)(quality, fooling, made, last)) == pytest.approx(5e-4)


def test_a_constant_is_one(losses_of_a_step):
    last, made, quality, fooling = losses_of_a_step
    assert ConstantWeight(weight=0.1)(quality, fooling, made, last) == 0.1


def test_an_adversary_is_listened_to_by_and_by():
    assert [adversary_share(step, at=3, ramp=0) for step in range(5)] == [0, 0, 0, 1, 1]
    assert [adversary_share(step, at=1, ramp=3) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
