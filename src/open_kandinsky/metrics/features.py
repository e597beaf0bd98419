"""What statistics of features share (finite values, chunks, gathering), and the Inception score.

The Inception score is high if a classifier is sure of each picture and uses all classes evenly.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torchmetrics.utilities import dim_zero_cat

from open_kandinsky.core.errors import UserError


def finite(values: Tensor, statistic: str) -> Tensor:
    """The values. Raises ValueError, which names `statistic` and counts, where some are NaN or infinite."""
    if wrong := int((~values.isfinite()).sum()):
        raise UserError(f"{wrong} of {values.numel()} numbers are NaN or infinite: there is no {statistic}")
    return values


def chunks(n: int, size: int) -> Iterator[slice]:
    """Slices that divide n rows into chunks of at most `size`."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def gathered(flat: list[Tensor] | Tensor, dim: int) -> Float[Tensor, "n d"]:
    """A metric's list of flat features, of one process or concatenated from all, as rows of `dim`.

    They are kept flat since torchmetrics can gather only one dimension from a process without examples.
    """
    return rearrange(dim_zero_cat(flat) if len(flat) else torch.zeros(0), "(n d) -> n d", d=dim)


class InceptionScore(NamedTuple):
    """Mean over the splits, and their standard deviation, which is not a standard error."""

    mean: float
    std: float


def inception_score(logits: Float[Tensor, "n classes"], *, seed: int, splits: int = 10) -> InceptionScore:
    """exp of the mean KL divergence of a picture's classes from all pictures' (Salimans et al. 2016), in float64.

    Of FID's Inception, whose published scores take its logits without the bias. By torch-fidelity, which puts the
    pictures in an order of `seed`'s before it splits them. It grows with the pictures in a split: compare at one n.
    Raises ValueError for logits that are not finite and for fewer pictures than splits.
    """
    if len(logits) < splits:
        raise UserError(f"{len(logits)} pictures do not fill {splits} splits; take more pictures, or fewer splits")
    score = isc_features_to_metric(finite(logits, "Inception score").detach().cpu(), splits=splits, rng_seed=seed)
    return InceptionScore(score[KEY_METRIC_ISC_MEAN], score[KEY_METRIC_ISC_STD])
