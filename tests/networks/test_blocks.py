"""Blocks: MoVQ's norm by its definition, a scale and shift resized to the map; and what is computed in place."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fixtures.system import nothing_at_zero

from open_kandinsky.networks.blocks import ConvBlock, FilmBlock, SpatialNorm, Upsample, add_skip, doubled


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("times", [1, 2, 4])
def test_spatial_norm_reads_the_nearest_latent(times, layout):
    torch.manual_seed(0)
    norm = SpatialNorm(32, latent_channels=4).double().to(memory_format=layout)
    z = torch.randn(2, 4, 3, 5).double()
    x = torch.randn(2, 32, 3 * times, 5 * times).double().contiguous(memory_format=layout)
    near = F.interpolate(z, size=x.shape[2:], mode="nearest")
    expected = F.group_norm(x, 32, eps=1e-6) * norm.scale(near) + norm.shift(near)
    made = norm(x, z)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)
    assert made.is_contiguous(memory_format=layout)


BLOCKS = {  # how one is made, and the shapes of what it is given beside the map
    "movq": (partial(ConvBlock, channels_out=32, norm=partial(torch.nn.GroupNorm, 32)), []),
    "movq's decoder": (
        partial(ConvBlock, channels_out=64, norm=partial(SpatialNorm, latent_channels=4)),
        [(2, 4, 3, 5)],
    ),
    "unet": (partial(FilmBlock, channels_out=32, emb=8), [(2, 8)]),
    "unet, up": (partial(FilmBlock, channels_out=64, emb=8, resample=Upsample()), [(2, 8)]),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", BLOCKS)
def test_what_is_computed_in_place_is_the_same_and_leaves_what_it_is_given(name, layout):
    torch.manual_seed(0)
    make, shapes = BLOCKS[name]
    block, more = make(channels_in=32).to(memory_format=layout), [torch.randn(shape) for shape in shapes]
    nothing_at_zero(block)
    x = torch.randn(2, 32, 6, 10).contiguous(memory_format=layout)
    given = [x.clone(), *(each.clone() for each in more)]
    learning = block(x, *more)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            made = block(x, *more)
        assert torch.equal(made, learning) and made.stride() == learning.stride()
        assert all(map(torch.equal, [x, *more], given))


def test_a_sum_in_place_keeps_the_wider_type():
    """As where autocast gives a block bfloat16 beside a float32 skip."""
    wide, narrow = torch.randn(3), torch.randn(3, dtype=torch.bfloat16)
    with torch.no_grad():
        for a, b in ((wide, narrow), (narrow, wide)):
            assert torch.equal(add_skip(a.clone(), b.clone()), a + b) and add_skip(a, b.clone()).dtype == torch.float32


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_doubled_is_nearest_neighbour(memory_format):
    """And so are its gradients; no dtype is left, and a GPU's layout comes out."""
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    up = torch.randn(2, 3, 10, 8, dtype=torch.float64)
    expected = F.interpolate(x, scale_factor=2.0, mode="nearest")
    found = doubled(x)
    assert found.equal(expected) and found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, up)[0] for y in (found, expected)), rtol=1e-14, atol=1e-14)
    assert doubled(x.bfloat16()).dtype == torch.bfloat16
