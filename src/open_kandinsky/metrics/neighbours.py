"""Precision, recall, density and coverage, from nearest neighbours of features.

An example's ball reaches to its k-th nearest neighbour in its own set.
"""

from itertools import combinations_with_replacement, product
from typing import NamedTuple

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Float32
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.metrics.features import chunks, finite


class Neighbours(NamedTuple):
    """Precision and recall of Kynkaanniemi et al. 2019; density and coverage of Naeem et al. 2020."""

    precision: float  # of the generated, how many lie in some real example's ball: are they good
    recall: float  # of the real, how many lie in some generated example's ball: are they varied
    density: float  # in how many real examples' balls a generated one lies, over k: about 1, above it too
    coverage: float  # of the real, how many have a generated example in their own ball


def neighbours(
    real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"], *, k: int = 3, chunk: int = 4096
) -> Neighbours:
    """All four figures of a set of generated features against a set of real ones.

    Precision and recall are published at k = 3, density and coverage at k = 5. `chunk` bounds the memory.
    Distances are float32, from features less the generated ones' mean, since float32 is too coarse far from the origin.
    Raises ValueError for features that are not finite and for sets without k neighbours.
    """
    if min(len(real), len(generated)) <= k:
        counts = f"{len(real)} real and {len(generated)} generated examples"
        raise UserError(f"{counts} have no {k}-th neighbour; it takes {k + 1} of each: give more, or a smaller k")
    x, y = (finite(part, "precision").detach().cpu() for part in (real, generated))
    origin = y.mean(0)
    x, y = (x - origin).float(), (y - origin).float()
    return count_balls(x, y, squared_radii(x, k, chunk), squared_radii(y, k, chunk), k, chunk)


def squared_radii(x: Float32[Tensor, "n d"], k: int, chunk: int) -> Float32[Tensor, "n"]:
    """Squared distance of each example to its k-th nearest neighbour, itself left out."""
    nearest = torch.full((len(x), k), torch.inf)
    for i, j in combinations_with_replacement(chunks(len(x), chunk), 2):
        apart = squared_distances(x[i], x[j])
        if i == j:
            apart.fill_diagonal_(torch.inf)
        else:
            nearest[j] = smallest(nearest[j], apart.T)
        nearest[i] = smallest(nearest[i], apart)
    return nearest.amax(1)


def count_balls(
    x: Float32[Tensor, "n d"],
    y: Float32[Tensor, "m d"],
    radii_x: Float32[Tensor, "n"],
    radii_y: Float32[Tensor, "m"],
    k: int,
    chunk: int,
) -> Neighbours:
    """All four figures from one pass over the distances between the two sets; `radii` are squared."""
    good, varied, covered = (torch.zeros(len(part), dtype=torch.bool) for part in (y, x, x))
    balls = 0
    for i, j in product(chunks(len(x), chunk), chunks(len(y), chunk)):
        apart = squared_distances(x[i], y[j])
        in_real = apart <= rearrange(radii_x[i], "n -> n 1")
        balls += int(in_real.sum())
        good[j] |= in_real.any(0)
        covered[i] |= in_real.any(1)
        varied[i] |= (apart <= radii_y[j]).any(1)
    precision, recall, coverage = (float(part.double().mean()) for part in (good, varied, covered))
    return Neighbours(precision, recall, balls / (k * len(y)), coverage)


def squared_distances(a: Float32[Tensor, "n d"], b: Float32[Tensor, "m d"]) -> Float32[Tensor, "n m"]:
    norm_a, norm_b = (reduce(part.square(), "n d -> n", "sum") for part in (a, b))
    return torch.addmm(norm_b, a, b.T, alpha=-2).add_(rearrange(norm_a, "n -> n 1")).clamp_min_(0)


def smallest(nearest: Float32[Tensor, "n k"], more: Float32[Tensor, "n m"]) -> Float32[Tensor, "n k"]:
    """The k smallest numbers of every row of `nearest` and `more` together."""
    k = nearest.shape[1]
    smallest_more = more.contiguous().topk(min(k, more.shape[1]), dim=1, largest=False).values
    return torch.cat([nearest, smallest_more], 1).topk(k, dim=1, largest=False).values
