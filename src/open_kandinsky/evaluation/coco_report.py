"""Numbers that others have printed for COCO-30K, to stand beside ours. Each under its own protocol: none are equal.

What a reader of the numbers must know, most of it a reason not to compare them.

The numbers, the pictures and the page of an evaluation on Weights & Biases.

report.html of a COCO evaluation: opens without a network, and says what its numbers may be compared with.

What an evaluation leaves: metrics.json for programs, report.html for people, and one line for the terminal.
"""

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from PIL import Image

from open_kandinsky.core import files
from open_kandinsky.core.leases import share
from open_kandinsky.evaluation import scores
from open_kandinsky.evaluation.coco_run import CocoScores, Run, about
from open_kandinsky.evaluation.report import (
    METRICS,
    Section,
    commit,
    figure,
    json_sha256,
    note,
    number,
    page,
    paragraph,
    picture,
    table,
    versions,
    write_html,
    write_json,
)
from open_kandinsky.evaluation.scores import SMALL
from open_kandinsky.generation.contact_sheet import contact_sheet


class Row(NamedTuple):
    """A zero-shot FID-30K at 256 px and a CLIP score as its authors scale it, where they give one."""

    model: str
    fid: float | None
    clip_score: float | None
    source: str


SOURCE = "arXiv 2310.03502, Table 3"
TABLE_3 = {
    "linear": Row("Kandinsky, linear prior", 8.03, 0.261, SOURCE),
    "residual": Row("Kandinsky, residual prior", 8.61, 0.249, SOURCE),
    "diffusion": Row("Kandinsky, diffusion prior", 9.87, 0.286, SOURCE),
    "diffusion, quantised": Row("Kandinsky, diffusion prior, quantised latents", 9.86, 0.287, SOURCE),
    "none": Row("Kandinsky, no prior", 25.92, 0.256, SOURCE),
}
OTHERS = (
    Row("Kandinsky 2.1, as released", 8.21, None, "its model card"),
    Row("eDiff-I", 6.95, None, "arXiv 2310.03502, Table 1"),
    Row("Imagen", 7.27, None, "arXiv 2310.03502, Table 1"),
    Row("GigaGAN", 9.09, 0.33, "its evaluation code, CLIP ViT-B/32"),
    Row("DALL-E 2", 10.39, None, "arXiv 2310.03502, Table 1"),
    Row("Stable Diffusion 1.4", 13.05, 0.2958, "BK-SDM's card, CLIP ViT-g/14"),
    Row("Karlo", 14.43, 0.3192, "its README, CLIP ViT-B/16"),
    Row("DeepFloyd IF, by its authors", 7.19, None, "arXiv 2310.03502, Table 1"),
    Row("DeepFloyd IF, by Kandinsky's authors", 15.10, None, "arXiv 2310.03502, Table 1"),
)


LENIENT = 0.001  # the share of captions that may be cut before a CLIP score is to be doubted


def caveats(run: Run) -> list[str]:
    """A sentence each."""
    return [*of_list(run), *of_pictures(run), *of_real_pictures(run), *of_captions(run), *of_evaluators(run)]


def of_list(run: Run) -> list[str]:
    found = []
    if not run.coco.is_val2014:
        found.append(f"{run.coco.source.name} is not val2014: it has {len(run.coco.images):,} images. Not COCO-30K.")
    if run.n < len(run.captions):
        found.append(f"The first {run.n:,} of {len(run.captions):,} captions: distances depend on how many there are.")
    if run.n < SMALL:
        found.append(f"{run.n:,} pictures are fewer than Inception's 2,048 features: no FID for comparison.")
    return found


def of_pictures(run: Run) -> list[str]:
    markers = run.samples.markers(run.n)
    found = []
    if len({seed for marker in markers for seed in marker["seeds"]}) == 1 and run.n > 1:
        found.append("All pictures were drawn from one noise, as this protocol has it: they are not independent.")
    if rows := run.samples.flat(run.n):
        found.append(f"{len(rows):,} pictures have a single colour: {', '.join(map(str, rows[:8]))}.")
    if len({str(marker["drawn_with"]) for marker in markers}) > 1:
        found.append("Drawn with different settings: the config beside the weights was changed on the way.")
    if len(machines := {marker["machine"] for marker in markers}) > 1:
        found.append(f"Drawn on different machines, so not to be repeated bit by bit: {'; '.join(sorted(machines))}.")
    if len({marker["versions"]["torch"] for marker in markers}) > 1:
        found.append("Drawn with different versions of torch, so not to be repeated bit by bit.")
    return found


def of_real_pictures(run: Run) -> list[str]:
    found = []
    for protocol in run.protocols:
        shapes = [(run.coco.by_id[i].width, run.coco.by_id[i].height) for i in protocol.real.ids]
        if stretched := sum(protocol.preparation.distorts(*shape) for shape in shapes):
            found.append(f"{protocol.name} changes the shape of {stretched:,} of {len(shapes):,} real pictures.")
    modes: Counter[str] = Counter()
    for features in run.features(run.protocol):
        modes = modes or features.converted()
    if modes:
        told = ", ".join(f"{count:,} from {mode}" for mode, count in sorted(modes.items()))
        found.append(f"Real pictures were converted to RGB: {told}.")
    return found


def of_captions(run: Run) -> list[str]:
    texts = [caption.text for caption in run.captions[: run.n]]
    found = []
    for extractor in readers(run):
        if cut := extractor.cut(texts):
            doubt = "; doubt its score" if len(cut) > LENIENT * len(texts) else ""
            found.append(f"{extractor.name} cut {len(cut):,} of {len(texts):,} captions, {cut[0]!r} first{doubt}.")
    return found


def of_evaluators(run: Run) -> list[str]:
    weights = [getattr(features.extractor, "weights", None) for features in run.features(run.protocol)]
    paths = dict.fromkeys(found.path.name for found in weights if found is not None and not found.verified)
    return [f"{path} is not the published file, or its hash is not known: unverified." for path in paths]


def readers(run: Run) -> list[Any]:
    """The networks that read captions, each once."""
    extractors = [features.extractor for features in run.features(run.protocol)]
    return list({extractor.name: extractor for extractor in extractors if hasattr(extractor, "cut")}.values())


MARK = "wandb.json"


@dataclass(frozen=True)
class Boarded:
    """One evaluation, logged once by one process. Its run's id is a hash of all that decides it."""

    out: Path
    project: str
    found: Mapping[str, Any]  # metrics.json
    report: Path
    name: str = "wandb"

    @property
    def id(self) -> str:
        told = {name: value for name, value in self.found.items() if name not in ("made", "versions")}
        return json_sha256(told)[:16]

    def done(self) -> bool:
        path = self.out / MARK
        return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["id"] == self.id

    def do(self) -> None:
        import wandb

        about = {name: value for name, value in self.found.items() if name not in ("metrics", "also")}
        name = f"{self.found['protocol']}-{self.found['prior']}"
        told: dict[str, Any] = {"name": name, "config": about, "job_type": "evaluate"}
        with wandb.init(project=self.project, id=self.id, dir=str(self.out), resume="allow", **told) as run:
            run.log({**self.numbers(), "report": wandb.Html(self.report.read_text(encoding="utf-8"), inject=False)})
        files.write(self.out / MARK, json.dumps({"id": self.id, "project": self.project}))

    def numbers(self) -> dict[str, float]:
        """The protocol's own by their names, the others' behind theirs."""
        others = {f"{name}/{key}": x for name, numbers in self.found["also"].items() for key, x in numbers.items()}
        return {**self.found["metrics"], **others}


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


REPORT = "report.html"
SHOWN = 40
LONGEST = 160  # letters of a caption on a sheet


def publish(run: Run, project: str | None) -> str:
    """Write both files, where they are not of these very numbers already; returns the headline."""
    share([RunFiles(run)], run.leases("report"), seen=lambda: None)
    found = json.loads((run.out / METRICS).read_text(encoding="utf-8"))
    if project is not None:
        share([Boarded(run.out, project, found, run.out / REPORT)], run.leases("wandb"), seen=lambda: None)
    return f"{headline(found)}\nreport: {run.out / REPORT}"


@dataclass(frozen=True)
class RunFiles:
    """The two files of one run. They are derived, and written anew where more has been scored since."""

    run: Run
    name: str = "report"

    def done(self) -> bool:
        path = self.run.out / METRICS
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {name: found.get(name) for name in self.numbers} == json.loads(json.dumps(self.numbers))

    def do(self) -> None:
        metrics = {**self.numbers, "versions": versions(), "made": made(self.run)}
        write_html(self.run.out / REPORT, page_of(metrics, random_png(self.run), worst_png(self.run)))
        write_json(self.run.out / METRICS, metrics)

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """All that does not depend on who made it, and when."""
        run = self.run
        own, *others = [CocoScores(run, protocol) for protocol in run.protocols]
        return {
            "protocol": run.protocol.name,
            "metrics": own.read(),
            "also": {other.protocol.name: other.read() for other in others},
            "warnings": caveats(run),
            **about(run),
        }


def headline(found: dict[str, Any]) -> str:
    """One line: FID by its own name, or whatever was computed first, with what it is of."""
    shown = {name: value for name, value in found["metrics"].items() if "_se" not in name and "_std" not in name}
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    return f"{found['protocol']}, {found['n']:,} pictures against {found['n_real']:,}: {numbers}"


def made(run: Run) -> dict[str, Any]:
    """By what and how long: the part that another run of the same has otherwise."""
    markers = run.samples.markers(run.n)
    return {
        "commit": commit(),
        "machines": sorted({marker["machine"] for marker in markers}),
        "seconds_drawing": sum(marker["seconds"] for marker in markers),
    }


def random_png(run: Run) -> bytes:
    """The first pictures: the list is in random order already."""
    return sheet_of(run, list(range(min(SHOWN, run.n))))


def worst_png(run: Run) -> bytes | None:
    """Those that agree least with their captions, by the first CLIP; None where none was asked."""
    for score in run.scores.values():
        if score.compute is scores.similarity:
            pair = next(iter(run.protocol.extractors[score.reads].values()))
            features = run.compared(run.protocol, pair, score)[0].read()
            return sheet_of(run, scores.worst(features, SHOWN // 2))
    return None


def sheet_of(run: Run, rows: list[int]) -> bytes:
    wanted = {block.index: block for block in run.samples.blocks for row in rows if row in block.rows}
    found: dict[int, Image.Image] = {}
    for block in wanted.values():
        found |= dict(zip(block.rows, run.samples.pictures(block), strict=True))
    for image in found.values():
        image.thumbnail((256, 256))
    data = io.BytesIO()
    texts = [shorten(run.captions[row].text, LONGEST, placeholder=" …") for row in rows]
    contact_sheet([found[row] for row in rows], texts, columns=8).save(data, "png")
    return data.getvalue()
