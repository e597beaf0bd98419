"""open-kandinsky: train, evaluate and use Kandinsky-like (unCLIP) text-to-image models.

import open_kandinsky as ok

pipe = ok.load("runs/quickstart")
[image] = pipe("a large yellow triangle on a purple background")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from open_kandinsky.loading import load
    from open_kandinsky.pipeline import Pipeline

    __version__: str

__all__ = ["Pipeline", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """`load`, `Pipeline` and `__version__` are imported on first access: the package itself imports nothing heavy."""
    if name == "load":
        from open_kandinsky.loading import load

        return load
    if name == "Pipeline":
        from open_kandinsky.pipeline import Pipeline

        return Pipeline
    if name == "__version__":
        from importlib.metadata import version

        return version("open-kandinsky")
    raise AttributeError(f"module 'open_kandinsky' has no attribute {name!r}")
