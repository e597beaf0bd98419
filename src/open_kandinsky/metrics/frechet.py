"""The Frechet distance between two sets of features, by two algorithms, which `cross_checked` compares.

Only on the features of the 2015 Inception is it called FID.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Float64
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torchmetrics import Metric

from open_kandinsky.core.errors import NumericalError, UserError
from open_kandinsky.metrics.features import finite, gathered

NAME = "Frechet distance"
NEARLY_SINGULAR = 1e-10  # of the largest variance: a dimension's variance that the other dimensions leave unexplained


class Moments(NamedTuple):
    """Mean and unbiased covariance of a set of features."""

    mean: Float64[Tensor, "d"]
    cov: Float64[Tensor, "d d"]


def frechet_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Between the Gaussians that have the moments of `x` and of `y` (Dowson & Landau 1982), in float64 on the CPU.

    Exact also for fewer examples than dimensions. Its bias depends on n: compare only distances at one n.
    Raises ValueError for features that are not finite and for fewer than 2 of them.
    """
    (mean_x, centred_x), (mean_y, centred_y) = centred(x), centred(y)
    return _distance(mean_x, _root_of_features(centred_x), mean_y, _root_of_features(centred_y))


def frechet_from_moments(
    mean_x: Float[Tensor, "d"], cov_x: Float[Tensor, "d d"], mean_y: Float[Tensor, "d"], cov_y: Float[Tensor, "d d"]
) -> float:
    """The Frechet distance from means and covariances, as references publish them; ValueError unless finite."""
    mean_x, cov_x, mean_y, cov_y = (finite(part, NAME).double().cpu() for part in (mean_x, cov_x, mean_y, cov_y))
    return _distance(mean_x, _root(cov_x), mean_y, _root(cov_y))


def moments(features: Float[Tensor, "n d"]) -> Moments:
    """Mean and covariance in float64 on the CPU, in two passes; ValueError as for `frechet_distance`."""
    mean, deviations = centred(features)
    return Moments(mean, _covariance(deviations))


def centred(features: Float[Tensor, "n d"]) -> tuple[Float64[Tensor, "d"], Float64[Tensor, "n d"]]:
    """The mean, and the deviations from it; ValueError as for `frechet_distance`."""
    if len(features) < 2:
        raise UserError(f"{len(features)} examples have no covariance; the Frechet distance needs 2 or more")
    features = finite(features, NAME).detach().double().cpu()
    mean = features.mean(0)
    return mean, features - mean


def _distance(mean_x: Tensor, root_x: Tensor, mean_y: Tensor, root_y: Tensor) -> float:
    """From means and from matrices R with R^T R the covariance, of any number of rows.

    The trace of (S_x S_y)^(1/2) is the sum of the singular values of R_x R_y^T. No square root of a nearly
    singular product is taken: that is where the usual matrix square root loses half of its digits.
    """
    overlap = torch.linalg.svdvals(root_x @ root_y.T).sum()
    return float((mean_x - mean_y).square().sum() + root_x.square().sum() + root_y.square().sum() - 2 * overlap)


def _root_of_features(deviations: Float64[Tensor, "n d"]) -> Float64[Tensor, "r d"]:
    """R with R^T R the covariance: the scaled deviations themselves if there are fewer of them than dimensions."""
    n, d = deviations.shape
    return deviations / (n - 1) ** 0.5 if n < d else _root(_covariance(deviations))


def _root(cov: Float64[Tensor, "d d"]) -> Float64[Tensor, "r d"]:
    """R with R^T R = cov: Cholesky's, 20 times as fast as by eigenvectors, unless cov is nearly singular."""
    factor, failed = torch.linalg.cholesky_ex(cov)
    if failed or factor.diagonal().min() ** 2 < NEARLY_SINGULAR * cov.diagonal().max():
        return _root_by_eigenvectors(cov)
    return factor.T


def _root_by_eigenvectors(cov: Float64[Tensor, "d d"]) -> Float64[Tensor, "r d"]:
    """Leaves out variances within rounding of zero, whose roots would be 1e8 times as wrong."""
    variance, axes = torch.linalg.eigh(cov)
    there = variance > len(cov) * torch.finfo(cov.dtype).eps * variance.abs().max()
    return rearrange(variance[there].sqrt(), "r -> r 1") * axes.T[there]


def _covariance(deviations: Float64[Tensor, "n d"]) -> Float64[Tensor, "d d"]:
    return deviations.T @ deviations / (len(deviations) - 1)


class FrechetDistance(Metric):
    """Collects features of real and of generated pictures, `dim` wide, and computes their distance under `name`.

    The features are kept and sorted, so that the distance is the same, to the bit, on any number of processes.
    """

    real: list[Tensor]
    generated: list[Tensor]
    full_state_update = False

    def __init__(self, *, name: str, dim: int) -> None:
        super().__init__()
        self.name = name
        self.dim = dim
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("generated", [], dist_reduce_fx="cat")

    def update(self, features: Float[Tensor, "b d"], real: bool) -> None:
        """Keep a batch's features, in float32. Raises ValueError where they are not `dim` wide."""
        if features.shape[1] != self.dim:
            raise UserError(f"{self.name}: features are {features.shape[1]} wide, {self.dim} were promised")
        (self.real if real else self.generated).append(features.detach().float().flatten())

    def compute(self) -> dict[str, float]:
        """The distance under `name`; ValueError as for `frechet_distance`."""
        return {self.name: frechet_distance(self._gathered(self.real), self._gathered(self.generated))}

    def _gathered(self, state: list[Tensor] | Tensor) -> Float[Tensor, "n d"]:
        """All processes' features in lexicographic order."""
        features = gathered(state, self.dim).cpu()
        rows, counts = features.unique(dim=0, return_counts=True) if len(features) else (features, 1)
        return rows.repeat_interleave(counts, dim=0)


TOLERANCE = 1e-4  # of the distance


def frechet_by_eigenvalues(x: Moments, y: Moments) -> float:
    """The Frechet distance from the eigenvalues of the covariances' product, as torch-fidelity computes it.

    From float64 moments: torch-fidelity's own, of float32 features, have means with six correct digits only. It loses
    half of the digits where a covariance is singular, as it is for fewer examples than dimensions.
    """
    statistics = ({"mu": part.mean.numpy(), "sigma": part.cov.numpy()} for part in (x, y))
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


def cross_checked(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """The Frechet distance by singular values, confirmed by the one by eigenvalues.

    Raises NumericalError, with both numbers and both spectra, where they differ by more than 1e-4 of the distance and
    by more than rounding explains; ValueError as `frechet_distance`.
    """
    few = min(len(x), len(y)) < x.shape[1]
    moments_x, moments_y = moments(x), moments(y)
    first = frechet_distance(x, y) if few else frechet_from_moments(*moments_x, *moments_y)
    second = frechet_by_eigenvalues(moments_x, moments_y)
    if abs(first - second) > TOLERANCE * abs(first) + rounding(moments_x.cov, moments_y.cov):
        raise NumericalError(disagreement(first, second, moments_x, moments_y))
    return first


def rounding(cov_x: Float64[Tensor, "d d"], cov_y: Float64[Tensor, "d d"]) -> float:
    """A bound of the rounding error by eigenvalues: d roots of eps |S_x S_y|, which eigenvalues of 0 may come out as.

    For 2048 Inception features it is below 0.001.
    """
    eps = torch.finfo(cov_x.dtype).eps
    return len(cov_x) * float((eps * cov_x.norm() * cov_y.norm()).sqrt())


def disagreement(first: float, second: float, x: Moments, y: Moments) -> str:
    text = f"two algorithms give two Frechet distances: {first!r} by singular values, {second!r} by eigenvalues"
    return f"{text}; variances along the axes of the first set: {spectrum(x.cov)}; of the second: {spectrum(y.cov)}"


def spectrum(cov: Float64[Tensor, "d d"]) -> str:
    """A covariance's eigenvalues in one line."""
    variance = torch.linalg.eigvalsh(cov)
    least = len(cov) * torch.finfo(cov.dtype).eps * float(variance.abs().max())
    rank = int((variance > least).sum())
    sizes = ", ".join(f"{float(part):.3g}" for part in (variance.max(), variance.median(), variance.min()))
    return f"largest, median, least {sizes}, rank {rank} of {len(cov)}, sum {float(variance.sum()):.6g}"
