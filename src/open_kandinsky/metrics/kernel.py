"""Maximum mean discrepancies (Gretton et al. 2012) between two sets of features: KID on Inception's, CMMD on CLIP's."""

from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from open_kandinsky.core.errors import UserError
from open_kandinsky.metrics.features import finite

SIGMA, SCALE = 10.0, 1000.0  # CMMD's: the kernel's width, and the factor of the squared MMD


class KID(NamedTuple):
    """Mean over the subsets, which may be slightly below 0 for equal sets, and standard deviation of the subsets."""

    mean: float
    std: float


class CMMD(NamedTuple):
    """The biased estimate, as published; and the unbiased one, which may be below 0."""

    value: float
    unbiased: float


def kid(
    real: Float[Tensor, "n d"],
    generated: Float[Tensor, "m d"],
    *,
    seed: int,
    subsets: int = 100,
    subset_size: int = 1000,
) -> KID:
    """Unbiased squared MMD with the kernel (x.y/d + 1)^3 (Binkowski et al. 2018), over subsets drawn by `seed`.

    By torch-fidelity, which computes in the features' own type: float64 here, since it subtracts nearly equal numbers.
    Raises ValueError for features that are not finite and for sets smaller than a subset.
    """
    fewest = min(len(real), len(generated))
    if not 2 <= subset_size <= fewest:
        sizes = f"{len(real)} real and {len(generated)} generated"
        raise UserError(
            f"KID draws subsets of {subset_size} without replacement, from {sizes}; "
            f"give subset_size between 2 and {fewest}, and name it beside the number"
        )
    sets = (finite(features, "KID").detach().cpu().double() for features in (generated, real))
    options = {"kid_subsets": subsets, "kid_subset_size": subset_size, "rng_seed": seed, "verbose": False}
    score = kid_features_to_metric(*sets, **options)
    return KID(score[KEY_METRIC_KID_MEAN], score[KEY_METRIC_KID_STD])


def cmmd(real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"], *, chunk: int = 4096) -> CMMD:
    """1000 times the squared MMD of CLIP embeddings of length 1, Gaussian kernel, sigma 10 (Jayasumana et al. 2024).

    The paper calls its estimate unbiased; its code includes every example's kernel with itself, and so do the published
    numbers and `value`. The kernel less 1 is summed: kernels lie in [0.98, 1], and their common 1 would cancel.
    Products are float32, sums float64; `chunk` bounds the memory and changes the last digits only.
    Raises ValueError for embeddings that are not finite and for fewer than 2 of them.
    """
    n, m = len(real), len(generated)
    if min(n, m) < 2:
        raise UserError(f"{n} real and {m} generated embeddings have no CMMD; it needs 2 or more of each")
    x, y = (F.normalize(finite(emb, "CMMD").detach().cpu().double(), dim=1).float() for emb in (real, generated))
    in_x, in_y, across = within(x, chunk), within(y, chunk), between(x, y, chunk) / (n * m)
    value = in_x / n**2 + in_y / m**2 - 2 * across
    unbiased = in_x / (n * (n - 1)) + in_y / (m * (m - 1)) - 2 * across
    return CMMD(SCALE * value, SCALE * unbiased)


def between(x: Float32[Tensor, "n d"], y: Float32[Tensor, "m d"], chunk: int) -> float:
    """The sum over all pairs of the kernel less 1, of unit vectors, whose squared distance is 2 - 2 x.y."""
    total = torch.zeros((), dtype=torch.float64)
    for a in x.split(chunk):
        for b in y.split(chunk):
            total += (a @ b.T).sub_(1).div_(SIGMA**2).expm1_().sum(dtype=torch.float64)
    return float(total)


def within(x: Float32[Tensor, "n d"], chunk: int) -> float:
    """The sum of `between` over all pairs of one set; pairs of different chunks are computed once."""
    parts = x.split(chunk)
    twice = sum(between(a, b, chunk) for a, b in combinations(parts, 2))
    return 2 * twice + sum(between(part, part, chunk) for part in parts)
