"""R1 and LeCam against their formulas."""

import pytest
import torch
from torch import nn

from open_kandinsky.stages.gan import R1, DiscriminatorBatch, LeCam, squared_gradient_norm


def linear(kernel=8, seed=0):
    """One score for each patch of `kernel` pixels a side, patches side by side."""
    torch.manual_seed(seed)
    return nn.Conv2d(3, 1, kernel, stride=kernel)


def scored(step=0, real=0.0, fake=0.0, pixels=None):
    pixels = torch.rand(4, 3, 16, 16) if pixels is None else pixels
    return DiscriminatorBatch(
        step, pixels, torch.as_tensor(real).expand(4, 1, 2, 2), torch.as_tensor(fake).expand(4, 1, 2, 2)
    )


@pytest.mark.parametrize("kernel", [16, 8, 4])
def test_the_slope_of_a_linear_adversary_is_its_weights(kernel):
    """|w|^2, for one patch a picture as for several."""
    net = linear(kernel)
    torch.testing.assert_close(squared_gradient_norm(net, scored().pixels), net.weight.square().sum())


def test_r1_at_each_sixteenth_step_counts_sixteen_times():
    net = linear()
    penalty = R1(weight=0.5, every=16)
    torch.testing.assert_close(penalty(net, scored(step=31)), 16 * 0.25 * net.weight.square().sum())
    assert [step for step in range(48) if penalty(net, scored(step=step)) is not None] == [15, 31, 47]


def test_r1_teaches_the_adversary():
    """d/dw |w|^2 = 2 w, and a step along it lessens the slope of one that is not linear too."""
    net = linear()
    R1(weight=2.0, every=1)(net, scored()).backward()
    torch.testing.assert_close(net.weight.grad, 2 * net.weight.detach())
    deep = nn.Sequential(nn.Conv2d(3, 8, 4, stride=2), nn.Tanh(), nn.Conv2d(8, 1, 4))
    pixels = torch.rand(4, 3, 16, 16)
    before = R1(weight=1.0, every=1)(deep, scored(pixels=pixels))
    before.backward()
    with torch.no_grad():
        for parameter in deep.parameters():
            if parameter.grad is not None:
                parameter -= 1e-2 * parameter.grad
    assert R1(weight=1.0, every=1)(deep, scored(pixels=pixels)) < before


def test_r1_of_pictures_one_by_one_is_that_of_the_batch():
    torch.manual_seed(0)
    net, pixels = nn.Sequential(nn.Conv2d(3, 8, 4, stride=2), nn.Tanh(), nn.Conv2d(8, 1, 4)), torch.rand(3, 3, 16, 16)
    alone = torch.stack([squared_gradient_norm(net, picture[None]) for picture in pixels])
    torch.testing.assert_close(squared_gradient_norm(net, pixels), alone.mean())


def test_r1_ignores_autocast():
    net = linear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert squared_gradient_norm(net, scored().pixels).dtype == torch.float32
        torch.testing.assert_close(squared_gradient_norm(net, scored().pixels), net.weight.square().sum())


def test_lecam_is_its_formula():
    """The averages are plain means until they are as long as the decay says."""
    penalty, net = LeCam(weight=0.1, decay=0.75), linear()
    sides, a_real, a_fake = [(1.0, -1.0), (2.0, -0.5), (0.0, 0.5), (1.5, 0.0), (3.0, -2.0), (0.5, 0.25)], 0.0, 0.0
    for n, (real, fake) in enumerate(sides, 1):
        found = penalty(net, scored(real=real, fake=fake))
        new = max(1 / n, 0.25)
        a_real, a_fake = a_real + new * (real - a_real), a_fake + new * (fake - a_fake)
        assert float(found) == pytest.approx(0.1 * ((real - a_fake) ** 2 + (fake - a_real) ** 2), rel=1e-5)
    assert float(penalty.real) == pytest.approx(a_real) and float(penalty.fake) == pytest.approx(a_fake)


def test_lecams_averages_are_saved():
    one, other = LeCam(weight=0.1, decay=0.9), LeCam(weight=0.1, decay=0.9)
    for real in (1.0, 3.0, 2.0):
        one(linear(), scored(real=real, fake=-real))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(linear(), scored(real=5.0)), other(linear(), scored(real=5.0)))


def test_lecam_pulls_scores_and_not_averages():
    real = torch.full((4, 1, 2, 2), 2.0, requires_grad=True)
    penalty = LeCam(weight=1.0, decay=0.9)
    penalty(linear(), DiscriminatorBatch(0, torch.rand(4, 3, 16, 16), real, torch.full((4, 1, 2, 2), -1.0))).backward()
    torch.testing.assert_close(real.grad, torch.full_like(real, 2 * (2 - -1) / 16))
