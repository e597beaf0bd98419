"""Where a network is laid out for its device: channels_last for a GPU, and nothing else changes."""

from types import SimpleNamespace

import pytest
import torch
from fixtures.system import stage

from open_kandinsky.stages.parallel import Compiled


@pytest.mark.parametrize(("device", "last"), [("cuda", True), ("cpu", False)])
def test_the_layout_is_the_devices(device, last):
    made = stage("decoder")
    before = {name: value.clone() for name, value in made.network.state_dict().items()}
    made.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    made.configure_model()
    kernels = [p for p in made.network.parameters() if p.ndim == 4 and p.shape[2] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) == last for p in kernels) and kernels
    assert all(value.equal(before[name]) for name, value in made.network.state_dict().items())


def test_each_shape_has_kernels_of_its_own():
    """Unless it is asked for, torch takes no size for unknown, though blocks of one class have several."""
    graphs = []

    def backend(graph, inputs):
        graphs.append([node.meta["example_value"] for node in graph.graph.nodes if node.op == "placeholder"])
        return graph.forward

    torch._dynamo.register_backend(backend, name="looks_on")
    known = []
    for dynamic in (False, None):
        torch._dynamo.reset()
        graphs.clear()
        for side in (8, 6, 4, 6):
            unit = torch.nn.Conv2d(3, 3, 1)
            Compiled(backend="looks_on", dynamic=dynamic)(unit, 4)
            unit.forward(torch.randn(2, 3, side, side))
        known.append([all(type(size) is int for x in graph for size in getattr(x, "shape", [x])) for graph in graphs])
    assert known == [[True, True, True], [True, False]]
