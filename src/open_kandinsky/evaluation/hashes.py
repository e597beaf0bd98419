"""Names for what decides a result: SHA-256 over texts, and over plain values."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any


def lines_sha256(lines: Sequence[str]) -> str:
    """Of texts, each of which ends with a zero byte."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\0")
    return digest.hexdigest()


def json_sha256(values: Any) -> str:
    """Of what JSON can say, in whatever order its names stand."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
