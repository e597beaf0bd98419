"""What every statistic of features asks of them.

The Inception score: how sure a classifier is of each picture, and how evenly it uses its classes.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from open_kandinsky.core.errors import UserError


def finite(values: Tensor, statistic: str) -> Tensor:
    """The values as they are. Raises ValueError, with their number, where some are NaN or infinite."""
    wrong = int((~values.isfinite()).sum())
    if wrong:
        raise UserError(f"{wrong} of {values.numel()} numbers are NaN or infinite: there is no {statistic}")
    return values


class InceptionScore(NamedTuple):
    """Mean over the splits, and their standard deviation, which is no standard error of the mean."""

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
