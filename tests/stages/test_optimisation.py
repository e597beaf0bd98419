"""An optimiser goes on from a checkpoint whose tensors are laid out otherwise than its weights."""

import copy

import pytest
import torch
from torch import nn

from open_kandinsky.stages.optim import prepare

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def after(steps, layout, fused, state=None):
    """A convolution after as many steps, and its optimiser's state."""
    torch.manual_seed(0)
    network = nn.Conv2d(8, 8, 3).to(memory_format=layout)
    optimizer = prepare(torch.optim.AdamW(network.parameters(), lr=0.1, fused=fused))
    if state is not None:
        optimizer.load_state_dict(copy.deepcopy(state))
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(2, 8, 8, 8)).square().mean().backward()
        optimizer.step()
    return network.weight.detach(), optimizer.state_dict()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("before", "then"), [LAYOUTS, LAYOUTS[::-1]])
def test_moments_follow_the_layout_of_weights(before, then, fused):
    _, state = after(2, before, fused)
    weight, moved = after(2, then, fused, state)
    expected, _ = after(2, before, fused, state)
    torch.testing.assert_close(weight, expected)
    assert moved["state"][0]["exp_avg"].stride() == weight.stride()
