"""report.html of a COCO evaluation: opens without a network, and says what its numbers may be compared with."""

from collections.abc import Mapping, Sequence
from typing import Any

from open_kandinsky.evaluation.coco.report.published import OTHERS, TABLE_3, Row
from open_kandinsky.evaluation.page import Section, figure, note, page, paragraph, picture, table
from open_kandinsky.evaluation.report import number

SPREAD = (
    "The same pictures, scored as other protocols do it: another crop, filter, size, reference set or way into "
    "Inception. The captions are those of the first. What differs down a column is the protocol alone."
)
COMPARE = (
    "Each was measured under its own protocol, most of which are not told in full, and the same model has been given "
    "numbers that differ by a factor of two. They say where a number lies, and rank nothing."
)


def page_of(found: Mapping[str, Any], random: bytes, worst: bytes | None) -> str:
    """From metrics.json and two contact sheets as PNG."""
    sections = [
        Section("", "".join(note(text) for text in found["warnings"])),
        Section("Numbers", scores_table(found)),
        *([Section("Under other protocols", paragraph(SPREAD) + spread_table(found))] if found["also"] else []),
        Section("Pictures", figure(picture(random, "Drawn pictures with their captions"), "The first of the list.")),
    ]
    if worst is not None:
        told = "Those that agree least with their captions, by the first CLIP."
        sections.append(Section("", figure(picture(worst, "The worst pictures with their captions"), told)))
    if any("fid" in name for name in found["metrics"]):
        sections.append(Section("Published", paragraph(COMPARE) + published_table()))
    sections.append(origin(found))
    return page(f"{found['protocol']}: {found['n']:,} pictures", sections)


def scores_table(found: Mapping[str, Any]) -> str:
    numbers = found["metrics"]
    rows = [[name, number(value), number(numbers.get(error_of(name)))] for name, value in shown(numbers).items()]
    return table(["Score", "Value", "±"], rows, caption="± is a standard error, or the spread over subsets")


def spread_table(found: Mapping[str, Any]) -> str:
    every = {found["protocol"]: found["metrics"], **found["also"]}
    names = list(dict.fromkeys(name for numbers in every.values() for name in shown(numbers)))
    rows = [[protocol, *(number(numbers.get(name)) for name in names)] for protocol, numbers in every.items()]
    return table(
        ["Protocol", *names], [*rows, ["greatest less least", *(number(width(every, name)) for name in names)]]
    )


def width(every: Mapping[str, Mapping[str, float]], name: str) -> float:
    values = [numbers[name] for numbers in every.values() if name in numbers]
    return max(values) - min(values)


def shown(numbers: Mapping[str, float]) -> dict[str, float]:
    """Without the errors, which stand beside what they are of."""
    return {name: value for name, value in numbers.items() if name not in {error_of(other) for other in numbers}}


def error_of(name: str) -> str:
    """`kid` -> `kid_std`, `is` -> `is_std`, `clip_score_vit_l_14` -> `clip_score_se_vit_l_14`."""
    bare = name.removeprefix("unverified_")
    if bare.startswith("clip_score"):
        return name.replace("clip_score", "clip_score_se", 1)
    return f"{name}_std"


def published_table() -> str:
    return rows_table([*TABLE_3.values(), *OTHERS])


def rows_table(rows: Sequence[Row]) -> str:
    cells = [[row.model, number(row.fid), number(row.clip_score), row.source] for row in rows]
    return table(["System", "FID-30K", "CLIP score", "Source"], cells)


def origin(found: Mapping[str, Any]) -> Section:
    """What decides the numbers, and what they were made with."""
    plain = ("protocol", "protocol_sha256", "n", "n_of", "n_real", "images_sha256", "captions_sha256", "coco_sha256")
    rows = [[name, str(found[name])] for name in plain]
    rows += [[f"weights: {part}", sha] for part, sha in found["weights_sha256"].items()]
    rows += [[f"evaluator: {name}", told(identity)] for name, identity in found["extractors"].items()]
    rows += [["drawn with", told(found["drawn_with"])]]
    rows += [["seeds", " to ".join(map(str, found["seeds"]))]]
    rows += [["versions", told(found["versions"])], ["commit", found["made"]["commit"]]]
    rows += [["machine", machine] for machine in found["made"]["machines"]]
    return Section("How it was made", table(["", ""], [[name, f" {value}"] for name, value in rows]))


def told(parts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in parts.items())
