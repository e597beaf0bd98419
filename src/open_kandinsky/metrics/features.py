"""What every statistic of features asks of them."""

from torch import Tensor

from open_kandinsky.core.errors import UserError


def finite(values: Tensor, statistic: str) -> Tensor:
    """The values as they are. Raises ValueError, with their number, where some are NaN or infinite."""
    wrong = int((~values.isfinite()).sum())
    if wrong:
        raise UserError(f"{wrong} of {values.numel()} numbers are NaN or infinite: there is no {statistic}")
    return values
