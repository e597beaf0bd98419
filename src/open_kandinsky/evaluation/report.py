"""What the reports of an evaluation share: what their numbers were computed with, JSON for programs, HTML for people.

Pages are jinja2 templates in templates/. Each is one file that opens without a network. All text is escaped; SVG drawn
by `evaluation.figures` is the one exception, and `drawing` in templates/parts.html the one place that makes it.
"""

import base64
import hashlib
import json
import math
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined

from open_kandinsky.core import files
from open_kandinsky.evaluation.figures import Number, duration

METRICS = "metrics.json"  # written by `evaluate` for other programs
PACKAGES = ("open-kandinsky", "torch", "lightning", "open_clip_torch", "torchmetrics", "webdataset", "numpy")
Value = Number | Undefined | None  # Undefined: a value that a template lacks; computing with it raises UndefinedError
NUMBER = re.compile(r"[-−+]?\d|–$")  # how a cell of numbers begins: a digit or a sign, or a dash for none


def lines_sha256(lines: Sequence[str]) -> str:
    """SHA-256 of texts in their order, each ended by a zero byte."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\0")
    return digest.hexdigest()


def json_sha256(values: Any) -> str:
    """SHA-256 of plain values as JSON; the order of a mapping's keys does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def commit() -> str:
    """The commit of the checkout that this package runs from, marked -dirty if files differ; else "unknown"."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    """The processor's model, the number of threads, and the GPU if there is one."""
    try:
        model = re.search(r"^model name\s*: *([^:\n]*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        model = None
    processor = model[1].strip() if model else platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor}, {torch.get_num_threads()} threads{gpu}"


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON, whole or not at all. NaN and infinity, which JSON lacks, become null.

    TypeError for values other than numbers, text, lists and mappings.
    """
    files.write(path, json.dumps(_finite(report), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def percent(share: Value, error: Number | None = None) -> str:
    """A share with its standard error, 84.4 ± 2.6 %; a dash for None and NaN."""
    if share is None or math.isnan(share):
        return "–"
    spread = "" if error is None or math.isnan(error) else f" ± {100 * error:.1f}"
    return f"{100 * share:.1f}{spread} %"


def number(value: Value) -> str:
    """Four significant digits, or a whole number with thousands separators; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return "–"
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.4g}"


def number_columns(rows: Sequence[Sequence[object]], columns: int) -> list[bool]:
    """For each column of a table, whether all its cells are numbers: such a column is set flush right."""
    return [all(NUMBER.match(str(row[i])) for row in rows) for i in range(columns)]


def listed(values: Mapping[str, Any]) -> str:
    """Names and values in one line: "torch 2.9, numpy 2.1"."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


PAGES = Environment(
    loader=PackageLoader("open_kandinsky.evaluation"),
    autoescape=True,
    undefined=StrictUndefined,  # a value that a report lacks raises UndefinedError, which names it
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.filters |= {function.__name__: function for function in (duration, listed, number, number_columns, percent)}
PAGES.filters["base64"] = lambda data: base64.b64encode(data).decode()


def page(template: str, **values: Any) -> str:
    """The HTML of a template in templates/. jinja2's UndefinedError names a value that it reads and was not given."""
    return PAGES.get_template(template).render(values)
