"""What an inpainting decoder sees beside x_t."""

import torch

from open_kandinsky.core.draws import ALONE
from open_kandinsky.stages.conditioning import InpaintingInput, NoInputConditioning

MASKS = InpaintingInput(smallest=0.25, largest=0.75)


def test_nothing_is_no_channel():
    assert NoInputConditioning()(torch.randn(2, 4, 6, 6), ALONE).shape == (2, 0, 6, 6)


def test_the_known_latent_and_then_the_mask():
    z = torch.randn(200, 4, 16, 12)
    beside = MASKS(z, ALONE)
    assert beside.shape == (200, 5, 16, 12)
    keep = beside[:, 4:]
    assert keep.unique().tolist() == [0, 1]
    assert torch.equal(beside[:, :4], z * keep)


def test_sizes_and_both_polarities():
    """A box or an ellipse of a quarter to three quarters of each side, painted or kept, about half of each."""
    torch.manual_seed(0)
    keep = MASKS.masks(torch.zeros(2000, 4, 32, 32), ALONE)[:, 0]
    edge = torch.ones(32, 32, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    outside_kept = (keep[:, edge].mean(1) > 0.5).float().mean()
    assert 0.45 < outside_kept < 0.55
    shape = torch.where((keep[:, edge].mean(1) > 0.5)[:, None, None], 1 - keep, keep)
    rows, columns = shape.amax(2).sum(1), shape.amax(1).sum(1)
    for sides in (rows, columns):
        assert 32 * 0.25 - 2 <= sides.min() and sides.max() <= 32 * 0.75 + 2
        assert sides.std() > 3
    full = shape.sum((1, 2)) / (rows * columns)
    assert 0.45 < (full > 0.99).float().mean() < 0.55, "half are boxes"


def test_each_example_has_its_own():
    keep = MASKS.masks(torch.zeros(50, 4, 32, 32), ALONE)
    assert len({mask.numpy().tobytes() for mask in keep}) > 45
