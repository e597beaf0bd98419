"""How a set of drawn embeddings lies to the set of true ones: row i of the one belongs to row i of the other."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float, Float64, Int
from torch import Tensor

CHUNK = 1024  # rows of similarities held at a time
SAME = 1e-12  # two cosines of equal vectors differ by rounding


def cosine(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> float:
    """The mean cosine of a row of `x` to its own row of `y`; NaN without rows."""
    return float(einsum(unit(x), unit(y), "n d, n d -> n").mean())


def cosine_of_others(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> float:
    """The mean cosine of a row of `x` to every other row of `y`: what a shuffled caption has, without a shuffle's luck.

    The cosines of all pairs add up to the dot product of the sums of unit vectors, so it takes no n x n matrix.
    NaN for fewer than two rows.
    """
    x, y = unit(x), unit(y)
    n, matched = len(x), (x * y).sum()
    return float((x.sum(0) @ y.sum(0) - matched) / (n * (n - 1))) if n > 1 else float("nan")


def retrieval(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], k: int) -> float:
    """The share of rows of `x` whose own row of `y` is among its k nearest by cosine.

    Of rows that are equally near, each is as likely to come first: if all of `y` were one vector, it would be k / n.
    NaN where a number is NaN.
    """
    nearer, equal = places(x, y)
    found = ((k - nearer).double() / equal).clamp(0, 1)
    return float(found.where(equal > 0, torch.nan).mean())


def places(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    """For each row of `x`: how many rows of `y` are nearer than its own, and how many as near, its own included."""
    x, y = unit(x), unit(y)
    nearer, equal = (torch.zeros(len(x), dtype=torch.long, device=x.device) for _ in range(2))
    for part in spans(len(x), CHUNK):
        similarity = x[part] @ y.T
        own = rearrange(similarity[:, part].diagonal(), "n -> n 1")
        nearer[part], equal[part] = (similarity > own + SAME).sum(1), ((similarity - own).abs() <= SAME).sum(1)
    return nearer, equal


def norm_ratio(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> float:
    """The mean length in `x` over the mean length in `y`: 1 where none has drifted."""
    return float(x.double().norm(dim=1).mean() / y.double().norm(dim=1).mean())


def std_ratios(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float64[Tensor, "d"]:
    """Each dimension's standard deviation in `x` over that in `y`: below 1 where the drawn are too much alike."""
    return x.double().std(0) / y.double().std(0)


def unit(x: Float[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
    return F.normalize(x.double(), dim=1)


def spans(n: int, chunk: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk, n)) for start in range(0, n, chunk))
