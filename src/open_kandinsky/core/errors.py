"""Error types: a failure's type says whose fault it is, and crosses processes with it."""


class UserError(ValueError):
    """A mistake in a person's input. Its text has the value and the remedy; commands print it and exit with 2."""


class NumericalError(FloatingPointError):
    """A number that should be finite is not, or two computations of it disagree. Commands print it and exit with 2."""


class BadSample(ValueError):
    """A sample of a data set that cannot be used: it is counted under `reason`, and training goes on."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    @classmethod
    def from_error(cls, error: ValueError) -> "BadSample":
        """`error` itself if it is a BadSample; else, as a user's transform may raise, a BadSample with its text."""
        return error if isinstance(error, BadSample) else BadSample("transform failed", str(error))


class FilteredSample(BadSample):
    """A sample that a filter leaves out. It is no defect, and does not count towards `max_bad_share`."""
