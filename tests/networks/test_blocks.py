"""MoVQ's norm against its definition: the latent's scale and shift, resized to the map."""

import pytest
import torch
import torch.nn.functional as F

from open_kandinsky.networks.blocks import SpatialNorm


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
