"""Blocks of the decoder's own widths, as it trains on a GPU: their gradients are a CPU's of float32, but for rounding.

Small blocks cannot tell: their kernels are other ones.
"""

import pytest
from makers.ranks import ranks
from makers.unet_block import gradients

pytestmark = pytest.mark.gpu

ROUNDING = 0.03  # of bfloat16, on a CPU 0.015 of a gradient's norm


@pytest.mark.parametrize("engine", ["plain", "compile"])
@pytest.mark.parametrize(
    ("c_in", "width", "side", "upsamples"), [(3072, 1536, 4, False), (2688, 1536, 4, True), (1152, 768, 16, True)]
)
def test_gradients_are_a_cpus(c_in, width, side, upsamples, engine):
    (exact,) = ranks(1, gradients, c_in, width, side, upsamples, "cpu", "plain")
    (found,) = ranks(1, gradients, c_in, width, side, upsamples, "cuda", engine)
    assert found.keys() == exact.keys() and len(exact) > 20
    apart = {name: float((found[name] - value).norm() / value.norm()) for name, value in exact.items()}
    assert max(apart.values()) < ROUNDING, sorted(apart.items(), key=lambda each: -each[1])[:5]
