"""Masks passwords and tokens, in URLs and in a command's headers, in all that is printed or written."""

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

HIDDEN = "***"
PATTERNS = [
    # user:password@host; a password may hold slashes, but host:8080/a@b is a port and a file
    (r"(://[^\s/@:'\"]*:)(?!\d{1,5}/)[^\s@'\"]+(?=@)", rf"\1{HIDDEN}"),
    (r"(?<=://)[^\s/@:'\"]+(?=@)", HIDDEN),  # token@host
    (
        r"(?i)([?&;][\w.-]*(?:token|secret|signature|sig|password|passwd|pwd|credential|key|keyid|auth)=)[^\s&'\"]+",
        rf"\1{HIDDEN}",
    ),
    (r"(?i)(authorization:\s*(?:bearer|basic|token)?\s*)[^\s'\"]+", rf"\1{HIDDEN}"),
]
FORMS = [(re.compile(pattern), replacement) for pattern, replacement in PATTERNS]
OF_A_USER = FORMS[:2]


def masked(text: str, forms: Sequence[tuple[re.Pattern[str], str]] = FORMS) -> str:
    """The text with *** in place of each password or token."""
    for pattern, replacement in forms:
        text = pattern.sub(replacement, text)
    return text


def told_apart(url: str) -> str:
    """A masked URL that still differs for different files: ?key=a and ?key=b may be two, and get a hash each."""
    name, with_query = masked(url), masked(url, OF_A_USER)
    return name if name == with_query else f"{name} {hashlib.sha256(with_query.encode()).hexdigest()[:12]}"


def masked_tree(tree: Any) -> Any:
    """A config with its strings masked."""
    if isinstance(tree, Mapping):
        return {key: masked_tree(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [masked_tree(value) for value in tree]
    return masked(tree) if isinstance(tree, str) else tree


class Masked:
    """A text stream that masks all that is written to it, tracebacks included."""

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
    """Mask all that this process prints within the block; blocks may be nested."""
    out, err = (s if isinstance(s, Masked) else Masked(s) for s in (sys.stdout, sys.stderr))
    with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
        yield


@contextmanager
def hidden_arguments() -> Iterator[None]:
    """Mask sys.argv within the block: wandb sends it to its server."""
    before, sys.argv = sys.argv, [masked(argument) for argument in sys.argv]
    try:
        yield
    finally:
        sys.argv = before
