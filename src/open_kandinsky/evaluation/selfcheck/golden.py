"""What somebody has published, and whether what is measured here agrees with it."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

Measured = float | str


@runtime_checkable
class Golden(Protocol):
    @property
    def value(self) -> Measured: ...
    @property
    def tolerance(self) -> float | None: ...
    @property
    def source(self) -> str:
        """Who published it, and where."""
        ...

    def agrees(self, measured: Measured) -> bool: ...
    def difference(self, measured: Measured) -> float | None:
        """None where there is no more to say than whether they agree."""
        ...


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number. `tolerance` is how far from it another machine may come out; what is not a number never agrees."""

    value: float
    tolerance: float
    source: str

    def agrees(self, measured: Measured) -> bool:
        return abs(self.difference(measured)) <= self.tolerance

    def difference(self, measured: Measured) -> float:
        assert isinstance(measured, int | float)
        return measured - self.value


@dataclass(frozen=True, kw_only=True)
class Digest:
    """A SHA-256, or its beginning where no more of it is published."""

    value: str
    source: str
    tolerance: None = None

    def __post_init__(self) -> None:
        assert self.value, "any file agrees with no hash"

    def agrees(self, measured: Measured) -> bool:
        return str(measured).startswith(self.value)

    def difference(self, measured: Measured) -> None:
        return None
