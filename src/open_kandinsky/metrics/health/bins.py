"""A mean a bin: the loss of the timesteps 0 to 99, of 100 to 199, and so on."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from open_kandinsky.core.errors import UserError


class BinnedMean(Metric):
    """Sums and counts of values by the bin that their timestep t falls into; sums alone, so processes add up.

    `bins` bins of equal width over t = 0 .. T - 1; where they do not divide T, they differ by one step.
    """

    total: Tensor
    n: Tensor
    full_state_update = False

    def __init__(self, *, bins: int, T: int) -> None:
        super().__init__()
        if not 1 <= bins <= T:
            raise UserError(f"bins={bins} of T={T} timesteps: give 1 to {T}")
        self.bins, self.T = bins, T
        self.add_state("total", torch.zeros(bins, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n", torch.zeros(bins, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, values: Float[Tensor, "b"], t: Int[Tensor, "b"]) -> None:
        bin_of = t * self.bins // self.T
        self.total.index_add_(0, bin_of, values.detach().double())
        self.n += torch.bincount(bin_of, minlength=self.bins)

    def compute(self) -> dict[str, float]:
        """first-last timestep of a bin -> its mean; bins that nothing fell into are left out."""
        means = (self.total / self.n).tolist()
        return {name: mean for name, mean, n in zip(self.names(), means, self.n.tolist(), strict=True) if n}

    def names(self) -> list[str]:
        first = [-(-i * self.T // self.bins) for i in range(self.bins + 1)]
        width = len(str(self.T - 1))
        return [f"{a:0{width}}-{b - 1:0{width}}" for a, b in zip(first, first[1:], strict=False)]
