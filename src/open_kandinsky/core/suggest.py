"""Suggests the name that a user probably meant by a mistyped one."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from open_kandinsky.core.errors import UserError

Option = TypeVar("Option")


def nearest(name: object, names: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The name most like `name`, by difflib's ratio; None where none reaches `cutoff`."""
    return next(iter(get_close_matches(str(name), list(names), n=1, cutoff=cutoff)), None)


def remedy(name: object, names: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The question whether the nearest name was meant; a list of all names where none is near."""
    names = list(names)
    near = nearest(name, names, cutoff=cutoff)
    return f"did you mean {near!r}?" if near else f"there are: {', '.join(names)}"


def lookup(key: str, value: object, options: Mapping[str, Option]) -> Option:
    """`options[value]`. UserError, with the nearest name, for a value that is not among the options."""
    if not isinstance(value, str) or value not in options:
        near = nearest(value, options)
        hint = f"did you mean {near!r}? " if near else ""
        raise UserError(f"{key}={value}: no such choice; {hint}there are: {', '.join(options)}")
    return options[value]
