"""open-kandinsky: train, evaluate and use Kandinsky-like (unCLIP) text-to-image models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from open_kandinsky.load import load
    from open_kandinsky.pipeline import Pipeline

__all__ = ["Pipeline", "load"]


def __getattr__(name: str) -> Any:
    """`load` and `Pipeline`, fetched when asked for: the package itself imports nothing heavy."""
    if name == "load":
        from open_kandinsky.load import load

        return load
    if name == "Pipeline":
        from open_kandinsky.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'open_kandinsky' has no attribute {name!r}")
