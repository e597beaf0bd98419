"""A report's files: numbers as JSON, and the quickstart's page, which says what its numbers are worth."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from open_kandinsky.core import files
from open_kandinsky.evaluation.figures import Number, duration, timeline
from open_kandinsky.evaluation.page import Section, figure, grid, note, page, paragraph, picture, table

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
