"""The report of an evaluation on COCO: metrics.json for programs, report.html for people, a line for the terminal.

metrics.json and the page carry warnings about what the numbers may be compared with (`caveats`); the page shows numbers
that others have published beside ours. Weights & Biases get all of it too (`WandbReport`).
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from open_kandinsky.core import files
from open_kandinsky.core.leases import share
from open_kandinsky.evaluation import scores
from open_kandinsky.evaluation.coco_run import CocoScores, Run, about
from open_kandinsky.evaluation.report import METRICS, commit, json_sha256, listed, number, page, versions, write_json
from open_kandinsky.evaluation.scores import SMALL
from open_kandinsky.generation.contact_sheet import contact_sheet

REPORT = "report.html"
WANDB_MARK = "wandb.json"  # the id under which this folder's numbers were logged
SHOWN = 40  # pictures on a sheet
LONGEST = 160  # letters of a caption on a sheet
LENIENT = 0.001  # the share of captions that may be cut before a CLIP score is to be doubted


class PublishedScores(NamedTuple):
    """A zero-shot FID-30K at 256 px, and a CLIP score as its authors scale it. No two were measured alike."""

    model: str
    fid: float
    clip_score: float | None
    source: str


SOURCE = "arXiv 2310.03502, Table 3"
TABLE_3 = {  # by prior, as `comparison.kind_of` names it
    "linear": PublishedScores("Kandinsky, linear prior", 8.03, 0.261, SOURCE),
    "residual": PublishedScores("Kandinsky, residual prior", 8.61, 0.249, SOURCE),
    "diffusion": PublishedScores("Kandinsky, diffusion prior", 9.87, 0.286, SOURCE),
    "diffusion, quantised": PublishedScores("Kandinsky, diffusion prior, quantised latents", 9.86, 0.287, SOURCE),
    "none": PublishedScores("Kandinsky, no prior", 25.92, 0.256, SOURCE),
}
OTHERS = (
    PublishedScores("Kandinsky 2.1, as released", 8.21, None, "its model card"),
    PublishedScores("eDiff-I", 6.95, None, "arXiv 2310.03502, Table 1"),
    PublishedScores("Imagen", 7.27, None, "arXiv 2310.03502, Table 1"),
    PublishedScores("GigaGAN", 9.09, 0.33, "its evaluation code, CLIP ViT-B/32"),
    PublishedScores("DALL-E 2", 10.39, None, "arXiv 2310.03502, Table 1"),
    PublishedScores("Stable Diffusion 1.4", 13.05, 0.2958, "BK-SDM's card, CLIP ViT-g/14"),
    PublishedScores("Karlo", 14.43, 0.3192, "its README, CLIP ViT-B/16"),
    PublishedScores("DeepFloyd IF, by its authors", 7.19, None, "arXiv 2310.03502, Table 1"),
    PublishedScores("DeepFloyd IF, by Kandinsky's authors", 15.10, None, "arXiv 2310.03502, Table 1"),
)


def caveats(run: Run) -> list[str]:
    """What a reader of the numbers must know, a sentence each: mostly reasons not to compare them."""
    return [*list_caveats(run), *picture_caveats(run), *real_caveats(run), *evaluator_caveats(run)]


def list_caveats(run: Run) -> Iterator[str]:
    """Where captions are not COCO-30K's, or too few for a FID."""
    if not run.coco.is_val2014:
        yield f"{run.coco.source.name} is not val2014: it has {len(run.coco.images):,} images. Not COCO-30K."
    if run.n < len(run.captions):
        yield f"The first {run.n:,} of {len(run.captions):,} captions: distances depend on how many there are."
    if run.n < SMALL:
        yield f"{run.n:,} pictures are fewer than Inception's 2,048 features: no FID for comparison."


def picture_caveats(run: Run) -> Iterator[str]:
    """Where drawn pictures share noise, have a single colour, or were not drawn all alike."""
    markers = run.samples.markers(run.n)
    if len({seed for marker in markers for seed in marker["seeds"]}) == 1 and run.n > 1:
        yield "All pictures were drawn from one noise, as this protocol has it: they are not independent."
    if rows := run.samples.flat(run.n):
        yield f"{len(rows):,} pictures have a single colour: {', '.join(map(str, rows[:8]))}."
    if len({str(marker["drawn_with"]) for marker in markers}) > 1:
        yield "Drawn with different settings: the config beside the weights was changed on the way."
    if len(machines := {marker["machine"] for marker in markers}) > 1:
        yield f"Drawn on different machines, so not to be repeated bit by bit: {'; '.join(sorted(machines))}."
    if len({marker["versions"]["torch"] for marker in markers}) > 1:
        yield "Drawn with different versions of torch, so not to be repeated bit by bit."


def real_caveats(run: Run) -> Iterator[str]:
    """Where a protocol stretches real pictures, and where they were not stored as RGB."""
    for protocol in run.protocols:
        shapes = [(run.coco.by_id[i].width, run.coco.by_id[i].height) for i in protocol.real.ids]
        if stretched := sum(protocol.preparation.distorts(*shape) for shape in shapes):
            yield f"{protocol.name} changes the shape of {stretched:,} of {len(shapes):,} real pictures."
    modes: Counter[str] = Counter()
    for features in run.features(run.protocol):
        modes = modes or features.converted()
    if modes:
        counts = ", ".join(f"{count:,} from {mode}" for mode, count in sorted(modes.items()))
        yield f"Real pictures were converted to RGB: {counts}."


def evaluator_caveats(run: Run) -> Iterator[str]:
    """Where an evaluator's network reads captions only in part, or is not known to be the published one."""
    extractors = [features.extractor for features in run.features(run.protocol)]
    texts = [caption.text for caption in run.captions[: run.n]]
    readers: dict[str, Any] = {extractor.name: extractor for extractor in extractors if hasattr(extractor, "cut")}
    for name, reader in readers.items():
        if cut := reader.cut(texts):
            doubt = "; doubt its score" if len(cut) > LENIENT * len(texts) else ""
            yield f"{name} cut {len(cut):,} of {len(texts):,} captions, {cut[0]!r} first{doubt}."
    weights = [getattr(extractor, "weights", None) for extractor in extractors]
    for path in dict.fromkeys(file.path.name for file in weights if file is not None and not file.verified):
        yield f"{path} is not the published file, or its hash is not known: unverified."


def publish(run: Run, project: str | None) -> str:
    """Write report.html and metrics.json, unless they hold these very numbers; returns the headline.

    With a `project`, log both to Weights & Biases.
    """
    share([ReportFiles(run)], run.leases("report"), seen=lambda: None)
    result = json.loads((run.out / METRICS).read_text(encoding="utf-8"))
    if project is not None:
        share([WandbReport(run.out, project, result, run.out / REPORT)], run.leases("wandb"), seen=lambda: None)
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in without_errors(result["metrics"]).items())
    headline = f"{result['protocol']}, {result['n']:,} pictures against {result['n_real']:,}: {numbers}"
    return f"{headline}\nreport: {run.out / REPORT}"


@dataclass(frozen=True)
class ReportFiles:
    """A run's report.html and metrics.json, as a unit of work: written anew where more has been scored since."""

    run: Run
    name: str = "report"

    def done(self) -> bool:
        path = self.run.out / METRICS
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {name: before.get(name) for name in self.numbers} == json.loads(json.dumps(self.numbers))

    def do(self) -> None:
        run, markers = self.run, self.run.samples.markers(self.run.n)
        result = {
            **self.numbers,
            "versions": versions(),
            "made": {
                "commit": commit(),
                "machines": sorted({marker["machine"] for marker in markers}),
                "seconds_drawing": sum(marker["seconds"] for marker in markers),
            },
        }
        first = sheet_of(run, list(range(min(SHOWN, run.n))))  # a caption list is in random order already
        files.write(run.out / REPORT, coco_page(result, first, worst_png(run)))
        write_json(run.out / METRICS, result)

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """All of metrics.json that is the same whoever computed it, and when."""
        run = self.run
        first, *others = [CocoScores(run, protocol) for protocol in run.protocols]
        return {
            "protocol": run.protocol.name,
            "metrics": first.read(),
            "also": {other.protocol.name: other.read() for other in others},
            "warnings": caveats(run),
            **about(run),
        }


@dataclass(frozen=True)
class WandbReport:
    """One evaluation's numbers and page on Weights & Biases, as a unit of work: logged once, by one process.

    The id of its wandb run is a hash of all that decides the numbers.
    """

    out: Path
    project: str
    result: Mapping[str, Any]  # metrics.json
    report: Path
    name: str = "wandb"

    @property
    def id(self) -> str:
        decisive = {name: value for name, value in self.result.items() if name not in ("made", "versions")}
        return json_sha256(decisive)[:16]

    def done(self) -> bool:
        path = self.out / WANDB_MARK
        return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["id"] == self.id

    def do(self) -> None:
        import wandb

        result, also = self.result, self.result["also"]
        numbers = {f"{protocol}/{name}": x for protocol, metrics in also.items() for name, x in metrics.items()}
        options: dict[str, Any] = {
            "name": f"{result['protocol']}-{result['prior']}",
            "config": {name: value for name, value in result.items() if name not in ("metrics", "also")},
            "job_type": "evaluate",
        }
        with wandb.init(project=self.project, id=self.id, dir=str(self.out), resume="allow", **options) as run:
            html = wandb.Html(self.report.read_text(encoding="utf-8"), inject=False)
            run.log({**result["metrics"], **numbers, "report": html})
        files.write(self.out / WANDB_MARK, json.dumps({"id": self.id, "project": self.project}))


def worst_png(run: Run) -> bytes | None:
    """A sheet of the pictures with the lowest CLIP score, by the first CLIP; None where no CLIP score was asked for."""
    for score in run.scores.values():
        if score.compute is scores.similarity:
            pair = next(iter(run.protocol.extractors[score.reads].values()))
            features = run.compared(run.protocol, pair, score)[0].read()
            return sheet_of(run, scores.worst(features, SHOWN // 2))
    return None


def sheet_of(run: Run, rows: list[int]) -> bytes:
    """A contact sheet of drawn pictures by their numbers, at most 256 px a side, as PNG."""
    blocks = [block for block in run.samples.blocks if any(row in block.rows for row in rows)]
    images = {
        row: image for block in blocks for row, image in zip(block.rows, run.samples.pictures(block), strict=True)
    }
    shown = [images[row] for row in rows]
    for image in shown:
        image.thumbnail((256, 256))
    texts = [shorten(run.captions[row].text, LONGEST, placeholder=" …") for row in rows]
    return contact_sheet(shown, texts, columns=8)


def coco_page(result: Mapping[str, Any], first: bytes, worst: bytes | None) -> str:
    """report.html, from metrics.json and two contact sheets as PNG."""
    metrics = result["metrics"]
    by_protocol = {result["protocol"]: metrics, **result["also"]}
    names = list(dict.fromkeys(name for numbers in by_protocol.values() for name in without_errors(numbers)))
    values = {name: [numbers[name] for numbers in by_protocol.values() if name in numbers] for name in names}
    spread = ["largest minus smallest", *(number(max(values[name]) - min(values[name])) for name in names)]
    rows = [[protocol, *(number(numbers.get(name)) for name in names)] for protocol, numbers in by_protocol.items()]
    published = [*TABLE_3.values(), *OTHERS] if any("fid" in name for name in metrics) else []
    return page(
        "coco.html",
        result=result,
        scores=[
            [name, number(value), number(metrics.get(error_of(name)))]
            for name, value in without_errors(metrics).items()
        ],
        score_names=names,
        by_protocol=[*rows, spread],
        first=first,
        worst=worst,
        published=[[row.model, number(row.fid), number(row.clip_score), row.source] for row in published],
        origin=origin(result),
    )


def without_errors(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics but for the errors of others, which stand beside them."""
    return {name: value for name, value in metrics.items() if name not in {error_of(other) for other in metrics}}


def error_of(name: str) -> str:
    """The name of a metric's error: kid -> kid_std, clip_score_vit_l_14 -> clip_score_se_vit_l_14."""
    if name.removeprefix("unverified_").startswith("clip_score"):
        return name.replace("clip_score", "clip_score_se", 1)
    return f"{name}_std"


def origin(result: Mapping[str, Any]) -> list[list[str]]:
    """What decides the numbers, and what they were computed with: rows of a name and a value."""
    plain = ("protocol", "protocol_sha256", "n", "n_of", "n_real", "images_sha256", "captions_sha256", "coco_sha256")
    return [
        *([name, str(result[name])] for name in plain),
        *([f"weights: {part}", sha256] for part, sha256 in result["weights_sha256"].items()),
        *([f"evaluator: {name}", listed(identity)] for name, identity in result["extractors"].items()),
        ["drawn with", listed(result["drawn_with"])],
        ["seeds", " to ".join(map(str, result["seeds"]))],
        ["versions", listed(result["versions"])],
        ["commit", result["made"]["commit"]],
        *(["machine", machine] for machine in result["made"]["machines"]),
    ]
