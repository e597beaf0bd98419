"""Where a network is laid out for its device: channels_last for a GPU, and nothing else changes."""

from types import SimpleNamespace

import pytest
import torch
from makers.system import stage


@pytest.mark.parametrize(("device", "last"), [("cuda", True), ("cpu", False)])
def test_the_layout_is_the_devices(device, last):
    made = stage("decoder")
    before = {name: value.clone() for name, value in made.network.state_dict().items()}
    made.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    made.configure_model()
    kernels = [p for p in made.network.parameters() if p.ndim == 4 and p.shape[2] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) == last for p in kernels) and kernels
    assert all(value.equal(before[name]) for name, value in made.network.state_dict().items())
