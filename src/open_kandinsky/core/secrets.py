"""Passwords and tokens out of what is printed and kept: those of addresses, and of a command's headers."""

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

HIDDEN = "***"
FORMS = [
    # user:password@host; a password may hold slashes, but host:8080/a@b is a port and a file
    (r"(://[^\s/@:'\"]*:)(?!\d{1,5}/)[^\s@'\"]+(?=@)", rf"\1{HIDDEN}"),
    (r"(?<=://)[^\s/@:'\"]+(?=@)", HIDDEN),  # token@host
    (
        r"(?i)([?&;][\w.-]*(?:token|secret|signature|sig|password|passwd|pwd|credential|key|keyid|auth)=)[^\s&'\"]+",
        rf"\1{HIDDEN}",
    ),
    (r"(?i)(authorization:\s*(?:bearer|basic|token)?\s*)[^\s'\"]+", rf"\1{HIDDEN}"),
]
COMPILED = [(re.compile(form), put) for form, put in FORMS]
OF_A_USER = COMPILED[:2]


def masked(text: str, forms: Sequence[tuple[re.Pattern[str], str]] = COMPILED) -> str:
    """The same, with *** in the place of each password or token."""
    for form, put in forms:
        text = form.sub(put, text)
    return text


def told_apart(url: str) -> str:
    """A masked address by which a file can be known; ?key=a and ?key=b may be two files, and have a hash each."""
    name, whose = masked(url), masked(url, OF_A_USER)
    return name if name == whose else f"{name} {hashlib.sha256(whose.encode()).hexdigest()[:12]}"


def masked_tree(tree: Any) -> Any:
    """A config's values likewise."""
    if isinstance(tree, Mapping):
        return {key: masked_tree(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [masked_tree(value) for value in tree]
    return masked(tree) if isinstance(tree, str) else tree


class Masked:
    """A text stream that hides them in what is written: tracebacks, too, show the addresses of errors."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self.stream.write(masked(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)


@contextmanager
def hidden() -> Iterator[None]:
    """In whatever this process prints meanwhile; once, where a block lies in another."""
    out, err = (one if isinstance(one, Masked) else Masked(one) for one in (sys.stdout, sys.stderr))
    with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
        yield


@contextmanager
def hidden_arguments() -> Iterator[None]:
    """In sys.argv meanwhile, which wandb sends to its server."""
    before, sys.argv = sys.argv, [masked(argument) for argument in sys.argv]
    try:
        yield
    finally:
        sys.argv = before
