"""Noise that belongs to an image, not to a batch."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from open_kandinsky.core.errors import UserError


def check_seeds(seeds: Sequence[int]) -> None:
    """ValueError for a seed that a CPU generator would cut: it uses the low 32 bits."""
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise UserError(f"seed {seed}: seeds are from 0 to 2^32 - 1 (a CPU generator drops the higher bits)")


class PerImageNoise:
    """An endless iterator of standard normal batches in which every image has its own generator.

    Image i draws the same numbers in any batch, on any device and number of processes: generators live on the CPU,
    draws are contiguous float32.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        check_seeds(seeds)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = tuple(shape), device

    def __iter__(self) -> "PerImageNoise":
        return self

    def __next__(self) -> Float[Tensor, "b ..."]:
        draws = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return torch.stack(draws).to(self.device)
