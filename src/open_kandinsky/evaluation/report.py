"""Names for what decides a result: SHA-256 over texts, and over plain values.

What a number was made with.

Parts of one self-contained HTML page: no script, no address outside it. All text is escaped here.

A report's files: numbers as JSON, and the quickstart's page, which says what its numbers are worth.
"""

import base64
import hashlib
import json
import math
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from open_kandinsky.core import files
from open_kandinsky.evaluation.figures import Number, duration, timeline


def lines_sha256(lines: Sequence[str]) -> str:
    """Of texts, each of which ends with a zero byte."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\0")
    return digest.hexdigest()


def json_sha256(values: Any) -> str:
    """Of what JSON can say, in whatever order its names stand."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


PACKAGES = ("open-kandinsky", "torch", "lightning", "open_clip_torch", "torchmetrics", "webdataset", "numpy")


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def commit() -> str:
    """Of the checkout that this package runs from, marked where files differ from it; "unknown" outside of one."""
    here = Path(__file__).parent
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(asked, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    """Processor, threads, and GPU if there is one."""
    model = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model[0] if model else platform.machine()}, {torch.get_num_threads()} threads{gpu}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


FIGURE = re.compile(r"[-−+]?\d|–$")
RIGHT = ' class="figure"'

STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #22262b; --soft: #666d76; --line: #e1e3e6; --tint: #f3f4f5;
  --accent: #2f6fb5; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #dfe2e6; --soft: #98a0aa; --line: #30343a;
  --tint: #1f2226; --accent: #7db2ec; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3rem 1.25rem 5rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 1rem; font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; }
h2 { margin: 3rem 0 0.75rem; font-size: 1.25rem; letter-spacing: -0.005em; }
p { margin: 0.5rem 0 1rem; max-width: 44rem; }
.note { padding: 0.75rem 1rem; max-width: none; background: var(--tint); border-left: 3px solid var(--accent); }
.scroll { overflow-x: auto; margin: 0.75rem 0 1.25rem; }
table { width: 100%; border-collapse: collapse; font-size: 0.9rem; }
caption { padding: 0.25rem 0; text-align: left; color: var(--soft); }
th, td { padding: 0.4rem 0.9rem 0.4rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
.figure { padding: 0.4rem 0 0.4rem 0.9rem; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th.figure { white-space: normal; }
.figure + :not(.figure) { padding-left: 1.75rem; }
figure { margin: 1rem 0 1.5rem; }
figcaption { margin-top: 0.4rem; color: var(--soft); font-size: 0.9rem; max-width: 44rem; }
img, svg { display: block; max-width: 100%; height: auto; }
img { border: 1px solid var(--line); border-radius: 6px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); gap: 0 1.5rem; }
.grid svg { width: 100%; }
code { font: 0.875em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
"""


class Section(NamedTuple):
    """A heading and what is below it, as HTML."""

    title: str
    html: str


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole document. A section without a title stands below the one before it."""
    body = "\n".join(f"<section>{heading(section.title)}{section.html}</section>" for section in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def heading(title: str) -> str:
    return f"<h2>{escape(title)}</h2>\n" if title else ""


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>\n"


def note(text: str) -> str:
    """A paragraph that is not to be overlooked."""
    return f'<p class="note">{escape(text)}</p>\n'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "") -> str:
    """Rows of text. A column is set flush right if each of its cells starts with a digit or a sign, or is a dash."""
    figures = [all(FIGURE.match(row[i]) for row in rows) for i in range(len(header))]
    head = "".join(_cell("th", text, right) for text, right in zip(header, figures, strict=True))
    body = "\n".join(
        f"<tr>{''.join(_cell('td', text, right) for text, right in zip(row, figures, strict=True))}</tr>"
        for row in rows
    )
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{named}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n'
    )


def _cell(tag: str, text: str, right: bool) -> str:
    """A heading may be broken behind each underscore, so that a wide table fits a page."""
    shown = escape(text).replace("_", "_<wbr>") if tag == "th" else escape(text)
    return f"<{tag}{RIGHT if right else ''}>{shown}</{tag}>"


def picture(png: bytes, alt: str) -> str:
    """A PNG inside the page; `alt` says what it shows to who cannot see it."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{escape(alt)}">'


def figure(html: str, caption: str) -> str:
    """A picture or a drawing, as HTML, with words below it."""
    return f"<figure>{html}<figcaption>{escape(caption)}</figcaption></figure>\n"


def grid(figures: Sequence[str]) -> str:
    """Drawings, as HTML, side by side where there is room."""
    return f'<div class="grid">{"".join(f"<figure>{drawing}</figure>" for drawing in figures)}</div>\n'


METRICS = "metrics.json"  # what `evaluate` leaves for other programs
TOY = (
    "These are toy results. The pictures are 32 pixels wide and show flat shapes, and the CLIP was trained for about a "
    "minute on nothing else. The numbers say that every part of the system works and works together; they say nothing "
    "about photographs, and they compare with no published number. The Frechet distance is measured on that toy CLIP's "
    "features and is not FID."
)
HEADLINES = (
    ("caption_accuracy", "Captions right", "of kinds seen in training, all attributes right"),
    ("caption_accuracy_heldout", "Captions right, held out", "combinations of attributes that training did not show"),
    ("caption_accuracy_never", "Captions right, never seen", "a colour that the shape never had in training"),
    ("caption_accuracy_no_guidance", "Captions right, no guidance", "kinds seen in training, drawn without guidance"),
    ("oracle_real", "Real pictures right", "how often the rule-based reader reads them as they were drawn"),
    (
        "oracle_reconstruction",
        "Reconstructions right",
        "real pictures through the autoencoder alone, read the same way",
    ),
)
ATTRIBUTES = ("count", "shape", "colour", "size", "relation", "background")
ACCURACY = (
    "A rule-based reader, not a network, names what each drawn picture shows. A picture is right if all that its "
    "caption says is there. After ± stands one standard error over the captions; one training was run, so the spread "
    "between seeds is not in it."
)
PRIORS = (
    "The prior turns a caption's embedding into a picture's. All of them feed the same decoder. No ranking is claimed: "
    "where two rows differ by less than about two standard errors, they are not told apart."
)


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Whole or not at all. What is not finite, which JSON cannot say, becomes null; TypeError for other than numbers,
    text, lists and mappings."""
    files.write(path, json.dumps(_sayable(report), indent=2, allow_nan=False) + "\n")


def write_html(path: Path, html: str) -> None:
    """Whole or not at all."""
    files.write(path, html)


def shapes_page(report: Mapping[str, Any], samples: bytes, curves: Mapping[str, str]) -> str:
    """The quickstart's page, from its report, a contact sheet as PNG, and SVGs; KeyError names what is missing."""
    sections = [
        Section("", note(TOY)),
        _samples(samples),
        _headline(report),
        _by_attribute(report["accuracy"]),
        _priors(report),
        _autoencoder(report),
        Section("Training curves", grid(list(curves.values()))),
        _parts(report),
        _origin(report),
    ]
    return page("Kandinsky at toy size: shapes from captions", sections)


def _samples(samples: bytes) -> Section:
    words = "Each was drawn from the caption below it. A tick: the rule-based reader finds all that the caption says."
    return Section("Samples", figure(picture(samples, "Pictures drawn by the system, each with its caption"), words))


def _headline(report: Mapping[str, Any]) -> Section:
    rows = [[label, percent(report[name]), meaning] for name, label, meaning in HEADLINES]
    others = [
        ["CLIP score", number(report["clip_score"]), "mean cosine of caption and drawn picture, by the toy CLIP"],
        ["Frechet distance", number(report["frechet_distance"]), "to the real pictures, on the toy CLIP's features"],
    ]
    return Section("In short", table(["", "Value", "What it is"], rows + others))


def _by_attribute(accuracy: Mapping[str, Mapping[str, Number]]) -> Section:
    """One table of attributes, and one that sets single things and pairs apart."""
    attributes = [
        [split, *(percent(row.get(name)) for name in ATTRIBUTES), percent(row["all"], row.get("all_se"))]
        for split, row in accuracy.items()
    ]
    kinds = [
        [split, percent(row.get("all_single")), percent(row.get("all_pair")), number(row.get("n"))]
        for split, row in accuracy.items()
    ]
    return Section(
        "What is right",
        paragraph(ACCURACY)
        + table(["Captions", *(title(name) for name in ATTRIBUTES), "All of them"], attributes, caption="By attribute")
        + table(["Captions", "One thing", "Two things", "Pictures"], kinds, caption="All of them right, by kind"),
    )


def _priors(report: Mapping[str, Any]) -> Section:
    priors = report["priors"]
    splits = [split for split in report["accuracy"] if any(f"accuracy_{split}" in row for row in priors.values())]
    header = [
        *(f"Right, {split}" for split in splits),
        "Cosine to picture",
        "Frechet",
        "CLIP score",
        "Parameters",
        "Time",
    ]
    rows = [[name, *_prior(row, splits)] for name, row in priors.items()]
    cosine = number(report["text_cosine_to_image"])
    own = f"Without any prior, a caption's own embedding has a cosine of {cosine} to that of its picture."
    return Section("The priors", paragraph(PRIORS) + table(["Prior", *header], rows) + paragraph(own))


def _prior(row: Mapping[str, Number], splits: Sequence[str]) -> list[str]:
    right = [percent(row.get(f"accuracy_{split}"), row.get(f"accuracy_{split}_se")) for split in splits]
    figures = [number(row.get(name)) for name in ("cosine_to_image", "frechet_distance", "clip_score", "parameters")]
    return [*right, *figures, duration(row["seconds"]) if "seconds" in row else "–"]


def _autoencoder(report: Mapping[str, Any]) -> Section:
    made = report["reconstruction"]
    rows = [
        ["PSNR", f"{number(made['psnr'])} dB", "mean over pictures, each on [0, 1]"],
        ["SSIM", number(made["ssim"]), "mean over pictures"],
        ["L1", number(made["l1"]), "mean absolute error, on [0, 1]"],
        ["Codes in use", percent(made["code_usage"]), "perplexity of the codebook's use, over its size"],
    ]
    reader = {name: row if isinstance(row, Mapping) else {"all": row} for name, row in report["oracle"].items()}
    splits = list(dict.fromkeys(split for row in reader.values() for split in row))
    read = [
        [title(name.removeprefix("oracle_")), *(percent(row.get(split)) for split in splits)]
        for name, row in reader.items()
    ]
    return Section(
        "The autoencoder",
        table(["", "Value", "What it is"], rows)
        + table(["", *(title(split) for split in splits)], read, caption="What the reader finds right"),
    )


def _parts(report: Mapping[str, Any]) -> Section:
    seconds, parts = report["seconds"], report["parts"]
    rows = [[name, duration(took), parts.get(name, "")] for name, took in seconds.items()]
    total = f"{duration(sum(seconds.values()))} in all, with at most {report['peak_memory_gb']:.1f} GB of memory."
    return Section("How long each part took", figure(timeline(seconds), total) + table(["Part", "Time", "For"], rows))


def _origin(report: Mapping[str, Any]) -> Section:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    named = {"Command": "command", "Commit": "commit", "Seed": "seed", "Machine": "machine"}
    rows = [[name, f"{report[key]}"] for name, key in named.items()]
    return Section("How it was made", table(["", ""], [*rows, ["Versions", versions]]))


def title(name: str) -> str:
    """A key as a heading."""
    return name.replace("_", " ").capitalize()


def percent(share: Number | None, error: Number | None = None) -> str:
    """A share with its standard error, 84.4 ± 2.6 %; a dash where there is none."""
    if share is None or math.isnan(share):
        return "–"
    spread = "" if error is None or math.isnan(error) else f" ± {100 * error:.1f}"
    return f"{100 * share:.1f}{spread} %"


def number(value: Number | None) -> str:
    """Four significant digits, or a whole number with its thousands set apart; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.4g}"


def _sayable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _sayable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_sayable(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
