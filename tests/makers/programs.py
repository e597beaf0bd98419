"""Programs of their own, which a test starts."""

import os
from pathlib import Path

SRC = Path(__file__).parents[2] / "src"


def environment():
    """This process's, for a program that finds the package too and leaves the other cores alone."""
    paths = [str(SRC), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
