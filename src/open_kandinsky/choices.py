"""Options by name."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

Option = TypeVar("Option")


def chosen(key: str, value: object, among: Mapping[str, Option]) -> Option:
    """What an option's name stands for; ValueError, with what is near, for a name that is not there."""
    if not isinstance(value, str) or value not in among:
        near = get_close_matches(str(value), among, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{key}={value}: no such choice; {hint}there are: {', '.join(among)}")
    return among[value]
