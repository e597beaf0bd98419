"""What is evaluated: a system, and how it is told to draw."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from open_kandinsky.pipeline import Pipeline
from open_kandinsky.pipeline.options import Options


@dataclass(frozen=True)
class Subject:
    """`open` loads the weights when it is first called: where nothing is left to draw, it is not."""

    prior: str  # what the prior is called in tables
    weights_sha256: Mapping[str, str]  # of each part's files
    open: Callable[[], Pipeline]
    options: Options
    seed: int  # picture i is drawn from seed + i
    device: str = "cpu"
