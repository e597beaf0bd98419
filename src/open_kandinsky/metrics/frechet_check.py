"""A second algorithm for the Frechet distance, and the distance only where the two agree."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from open_kandinsky.core.errors import NumericalError
from open_kandinsky.metrics.frechet import Moments, frechet_distance, frechet_from_moments, moments

TOLERANCE = 1e-4  # of the distance


def frechet_by_eigenvalues(x: Moments, y: Moments) -> float:
    """From the eigenvalues of the covariances' product, as torch-fidelity computes it.

    Given float64 moments: torch-fidelity's own, of float32 features, have means that are right to six digits only.
    Loses half of the digits where a covariance is singular, as it is for fewer examples than dimensions.
    """
    theirs = ({"mu": part.mean.numpy(), "sigma": part.cov.numpy()} for part in (x, y))
    return fid_statistics_to_metric(*theirs, verbose=False)[KEY_METRIC_FID]


def cross_checked(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """The Frechet distance by singular values, where that by eigenvalues says the same.

    Raises NumericalError, with both numbers and both spectra, where they are more than 1e-4 of the distance apart
    and more than rounding can explain; ValueError as `frechet_distance`.
    """
    few = min(len(x), len(y)) < x.shape[1]
    moments_x, moments_y = moments(x), moments(y)
    first = frechet_distance(x, y) if few else frechet_from_moments(*moments_x, *moments_y)
    second = frechet_by_eigenvalues(moments_x, moments_y)
    if abs(first - second) > TOLERANCE * abs(first) + rounding(moments_x.cov, moments_y.cov):
        raise NumericalError(disagreement(first, second, moments_x, moments_y))
    return first


def rounding(cov_x: Float64[Tensor, "d d"], cov_y: Float64[Tensor, "d d"]) -> float:
    """What the form by eigenvalues may be wrong by: an eigenvalue of the product that is 0 comes out as eps |S_x S_y|.

    Its root, d times. For 2048 Inception features that is below 0.001.
    """
    eps = torch.finfo(cov_x.dtype).eps
    return len(cov_x) * float((eps * cov_x.norm() * cov_y.norm()).sqrt())


def disagreement(first: float, second: float, x: Moments, y: Moments) -> str:
    told = f"two algorithms give two Frechet distances: {first!r} by singular values, {second!r} by eigenvalues"
    return f"{told}; variances along the axes of the first set: {spectrum(x.cov)}; of the second: {spectrum(y.cov)}"


def spectrum(cov: Float64[Tensor, "d d"]) -> str:
    """A covariance's eigenvalues in one line."""
    variance = torch.linalg.eigvalsh(cov)
    least = len(cov) * torch.finfo(cov.dtype).eps * float(variance.abs().max())
    rank = int((variance > least).sum())
    sizes = ", ".join(f"{float(part):.3g}" for part in (variance.max(), variance.median(), variance.min()))
    return f"largest, median, least {sizes}, rank {rank} of {len(cov)}, sum {float(variance.sum()):.6g}"
