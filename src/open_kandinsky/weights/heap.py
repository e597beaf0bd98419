"""Memory that is free and not yet the system's."""

import ctypes
import sys


def give_back() -> None:
    """Freed memory, holes inside of the heap too, to the system: glibc keeps it otherwise. Elsewhere, nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
