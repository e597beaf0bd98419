"""Error types. Whose fault a failure is, is told by its type, in all processes."""


class UserError(ValueError):
    """A mistake that a person can mend. Its text has the value and the remedy; commands print it and exit with 2."""


class NumericalError(FloatingPointError):
    """A number that should be finite is not, or two computations of it disagree. Commands print it and exit with 2."""


class BadSample(ValueError):
    """A sample of a data set that cannot be used: it is counted under `reason`, and training goes on."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    @classmethod
    def from_error(cls, error: ValueError) -> "BadSample":
        """`error` itself if it is one; else, as from a transform of somebody's own, one with its text."""
        return error if isinstance(error, BadSample) else BadSample("transform failed", str(error))


class FilteredSample(BadSample):
    """A sample that a filter leaves out. It is no defect, and does not count towards `max_bad_share`."""
