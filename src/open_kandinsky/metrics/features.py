"""What every statistic of features asks of them."""

from torch import Tensor


def finite(values: Tensor, statistic: str) -> Tensor:
    """The values as they are. Raises ValueError, with their number, where some are NaN or infinite."""
    wrong = int((~values.isfinite()).sum())
    if wrong:
        raise ValueError(f"{wrong} of {values.numel()} numbers are NaN or infinite: there is no {statistic}")
    return values
