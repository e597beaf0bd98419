"""Options by name."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

Option = TypeVar("Option")


def chosen(key: str, value: object, among: Mapping[str, Option]) -> Option:
    """What an option's name stands for; ValueError, with the nearest, for a name that is not there."""
    if not isinstance(value, str) or value not in among:
        near = get_close_matches(str(value), among, n=1, cutoff=0)[0]
        raise ValueError(f"{key}={value}: no such choice; nearest {near!r}; known: {', '.join(among)}")
    return among[value]
