"""Blocks of the decoder's own widths, as it trains on a GPU: their gradients are those of float32, but for rounding.

Small blocks cannot tell: their kernels are other ones, and so are those of few examples. A CPU says what float32 is
where it can in time, and the GPU itself, in another layout, where it cannot.
"""

import pytest
from fixtures.ranks import ranks
from fixtures.unet_block import gradients

pytestmark = pytest.mark.gpu

ROUNDING = 0.03  # of bfloat16, on a CPU 0.015 of a gradient's norm


@pytest.mark.parametrize("engine", ["plain", "compile"])
@pytest.mark.parametrize(("n", "reference"), [(4, "cpu"), (160, "cuda")])
@pytest.mark.parametrize(
    ("c_in", "width", "side", "upsamples"), [(3072, 1536, 4, False), (2688, 1536, 4, True), (1152, 768, 16, True)]
)
def test_gradients_are_those_of_float32(c_in, width, side, upsamples, n, reference, engine):
    sizes = c_in, width, side, upsamples, n
    (exact,) = ranks(1, gradients, *sizes, reference, "plain", False)
    (found,) = ranks(1, gradients, *sizes, "cuda", engine, True)
    assert found.keys() == exact.keys() and len(exact) > 20
    apart = {name: float((found[name] - value).norm() / value.norm()) for name, value in exact.items()}
    assert max(apart.values()) < ROUNDING, sorted(apart.items(), key=lambda each: -each[1])[:5]
