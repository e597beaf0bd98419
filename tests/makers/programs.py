"""Programs of their own, which a test starts."""

import os
from pathlib import Path

SRC = Path(__file__).parents[2] / "src"


def environment():
    """This process's, for a program that finds the package and leaves the other cores alone."""
    return {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
