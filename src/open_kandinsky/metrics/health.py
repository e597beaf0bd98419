"""Figures that show whether a training is healthy: losses by timestep, use of the codebook, a prior's embeddings.

The functions compare drawn embeddings x with true ones y: row i of x belongs to row i of y.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor
from torchmetrics import Metric

from open_kandinsky.core.errors import UserError
from open_kandinsky.metrics.features import chunks, gathered


class FeatureTable(Metric):
    """Collects named columns of features, all `dim` wide, for figures that need a whole set at once.

    4 bytes a number: 10,000 embeddings of 768 in four columns are 123 MB, in every process.
    """

    full_state_update = False

    def __init__(self, *, columns: tuple[str, ...], dim: int) -> None:
        super().__init__()
        self.columns, self.dim = columns, dim
        for name in columns:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, **columns: Float[Tensor, "b d"]) -> None:
        """Keep a batch, in float32."""
        assert set(columns) == set(self.columns), f"{sorted(columns)} given, {sorted(self.columns)} kept"
        for name, features in columns.items():
            assert features.shape[1] == self.dim, f"{name} is {features.shape[1]} wide, {self.dim} was promised"
            getattr(self, name).append(features.detach().float().flatten())

    def compute(self) -> Mapping[str, Float32[Tensor, "n d"]]:
        """The rows of all processes; row i belongs to the same example in all columns."""
        return {name: gathered(getattr(self, name), self.dim).to(self.device) for name in self.columns}


class BinnedMean(Metric):
    """The mean of values by bins of their timesteps: the loss of t = 0 to 99, of 100 to 199, and so on.

    `bins` bins of equal width over t = 0 .. T - 1; where they do not divide T, widths differ by one step. The states
    are sums, so that processes add up.
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
        """first-last timestep of a bin -> its mean; empty bins are left out."""
        means = (self.total / self.n).tolist()
        return {name: mean for name, mean, n in zip(self.names(), means, self.n.tolist(), strict=True) if n}

    def names(self) -> list[str]:
        first = [-(-i * self.T // self.bins) for i in range(self.bins + 1)]
        width = len(str(self.T - 1))
        return [f"{a:0{width}}-{b - 1:0{width}}" for a, b in zip(first, first[1:], strict=False)]


class CodeUsage(Metric):
    """Counts the use of each code over a whole set: within one batch a large codebook always looks unused."""

    counts: Tensor
    full_state_update = False

    def __init__(self, *, codes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(codes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, index: Int[Tensor, "..."]) -> None:
        self.counts += torch.bincount(index.flatten(), minlength=len(self.counts))

    def compute(self) -> dict[str, float]:
        """`codes_used`: the share used at least once. `code_perplexity`: exp of the entropy, from 1 to all codes."""
        p = self.counts.double() / self.counts.sum()
        used = (self.counts > 0).double().mean()
        return {"codes_used": float(used), "code_perplexity": float(torch.special.entr(p).sum().exp())}


CHUNK = 1024  # rows of similarities held at a time
SAME = 1e-12  # two cosines of equal vectors differ by rounding


def cosine(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> float:
    """The mean cosine of a row of `x` to its own row of `y`; NaN without rows."""
    return float(einsum(unit(x), unit(y), "n d, n d -> n").mean())


def cosine_of_others(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> float:
    """The mean cosine of a row of `x` to every other row of `y`: the expected cosine after shuffling `y`.

    The cosines of all pairs add up to the dot product of the sums of unit vectors, so no n x n matrix is needed.
    NaN for fewer than two rows.
    """
    x, y = unit(x), unit(y)
    n, matched = len(x), (x * y).sum()
    return float((x.sum(0) @ y.sum(0) - matched) / (n * (n - 1))) if n > 1 else float("nan")


def retrieval(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], k: int) -> float:
    """The share of rows of `x` whose own row of `y` is among its k nearest by cosine.

    Rows that are equally near share their ranks: if all rows of `y` were the same, it would be k / n. NaN where a
    number is NaN.
    """
    nearer, equal = ranks(x, y)
    within_k = ((k - nearer).double() / equal).clamp(0, 1)
    return float(within_k.where(equal > 0, torch.nan).mean())


def ranks(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    """For each row of `x`, how many rows of `y` are nearer than its own, and how many as near, its own included."""
    x, y = unit(x), unit(y)
    nearer, equal = (torch.zeros(len(x), dtype=torch.long, device=x.device) for _ in range(2))
    for part in chunks(len(x), CHUNK):
        similarity = x[part] @ y.T
        matched = rearrange(similarity[:, part].diagonal(), "n -> n 1")
        nearer[part] = (similarity > matched + SAME).sum(1)
        equal[part] = ((similarity - matched).abs() <= SAME).sum(1)
    return nearer, equal


def norm_ratio(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> float:
    """The mean length in `x` over the mean length in `y`: 1 without a drift."""
    return float(x.double().norm(dim=1).mean() / y.double().norm(dim=1).mean())


def std_ratios(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float64[Tensor, "d"]:
    """Each dimension's standard deviation in `x` over that in `y`: below 1 if drawn embeddings vary too little."""
    return x.double().std(0) / y.double().std(0)


def unit(x: Float[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
    return F.normalize(x.double(), dim=1)
