"""What torch.compile's own backend makes of a stage's blocks has the gradients of what is not compiled.

As programs of their own: what checks shapes here is not to be compiled. Dynamo and autograd alone, which other tests
take for their speed (aot_eager), say nothing of the kernels: torch 2.11 to 2.15 compile `split` into wrong gradients.
"""

import pytest
import torch
from fixtures.ranks import ranks
from fixtures.together import gradients


@pytest.mark.slow
@pytest.mark.parametrize("part", ["prior", "prior_residual", "decoder", "movq"])
def test_gradients_are_those_of_what_is_not_compiled(part):
    expected, found = (ranks(1, gradients, part, engine)[0] for engine in ("plain", "compile"))
    assert found.keys() == expected.keys() and len(found) > 10
    for name, value in expected.items():
        atol = 1e-5 * float(value.abs().max()) + 1e-7
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=atol, msg=lambda told, name=name: f"{name}: {told}"
        )
