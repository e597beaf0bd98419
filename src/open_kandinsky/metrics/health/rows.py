"""Columns of features, gathered from all processes."""

from collections.abc import Mapping

import torch
from einops import rearrange
from jaxtyping import Float, Float32
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Rows(Metric):
    """Keeps named columns of features, all `dim` wide, for figures that need a whole set at once.

    4 bytes a number: 10,000 embeddings of 768 in four columns are 123 MB, in every process.
    """

    full_state_update = False

    def __init__(self, *, columns: tuple[str, ...], dim: int) -> None:
        super().__init__()
        self.columns, self.dim = columns, dim
        # flat: torchmetrics can gather from a process without examples only what has one dimension
        for name in columns:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, **columns: Float[Tensor, "b d"]) -> None:
        """Keep a batch, in float32."""
        assert set(columns) == set(self.columns), f"{sorted(columns)} given, {sorted(self.columns)} kept"
        for name, features in columns.items():
            assert features.shape[1] == self.dim, f"{name} is {features.shape[1]} wide, {self.dim} was promised"
            getattr(self, name).append(features.detach().float().flatten())

    def compute(self) -> Mapping[str, Float32[Tensor, "n d"]]:
        """Every process's rows; row i belongs to one example in all columns."""
        return {name: self._gathered(getattr(self, name)) for name in self.columns}

    def _gathered(self, state: list[Tensor] | Tensor) -> Float32[Tensor, "n d"]:
        flat = dim_zero_cat(state) if len(state) else torch.zeros(0, device=self.device)
        return rearrange(flat, "(n d) -> n d", d=self.dim)
