"""Evaluation on the toy set: does a drawn picture show what its caption says, by rule; and the quickstart's report.

`protocol=shapes` (ShapesProtocol) leaves metrics.json and samples.png. `make quickstart` leaves report.json,
report.html and samples.png, from those metrics and from what its parts logged (`report_on`).
"""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.shapes.world import SPLITS, Scene, World
from open_kandinsky.data.tar.reader import read_samples
from open_kandinsky.data.tar.stats import SampleStats
from open_kandinsky.data.transforms import ClipPixels, to_images, to_pixels, to_uint8
from open_kandinsky.evaluation import figures
from open_kandinsky.evaluation.report import METRICS, commit, machine, number, page, percent, versions, write_json
from open_kandinsky.evaluation.samples import EvalRequest
from open_kandinsky.generation.contact_sheet import contact_sheet
from open_kandinsky.metrics.clip_score import CLIPScore
from open_kandinsky.metrics.frechet import frechet_distance
from open_kandinsky.metrics.reconstruction import ReconstructionMetric
from open_kandinsky.metrics.shapes_oracle import CaptionAccuracy, ShapesOracle
from open_kandinsky.networks.quantizer import perplexity
from open_kandinsky.pipeline import Pipeline

COMPARED = SPLITS[:2]  # the splits on which all priors are compared; the system's own is scored on all splits
SHOWN = 40  # pictures on samples.png


@dataclass(frozen=True)
class Examples:
    """Real pictures, their captions, and the scenes that both show."""

    pixels: Float[Tensor, "n 3 h w"]  # [-1, 1]
    captions: list[str]
    scenes: list[Scene]


@dataclass(frozen=True)
class ToyDrawings:
    """Pictures that a system drew for captions, and the image embeddings that they were decoded from."""

    image_emb: Float[Tensor, "n d"]
    pixels: Float[Tensor, "n 3 h w"]  # [-1, 1]


def read_examples(urls: str, limit: int) -> Examples:
    """The first `limit` samples of the toy set's shards."""
    samples = list(islice(read_samples(urls, SampleStats(max_bad_share=0.0)), limit))
    pixels = torch.stack([to_pixels(sample.image) for sample in samples])
    scenes = [Scene.from_json(sample.info["scene"]) for sample in samples]
    return Examples(pixels, [sample.caption for sample in samples], scenes)


class ShapesProtocol:
    """Caption accuracy on each split of the toy set, and a comparison of priors that feed one decoder.

    The first prior is the system's own. `shapes` is the data set's folder, `captions` their number a split.
    """

    reads = ()
    metrics = ()

    def __init__(self, *, shapes: str, world: World, captions: int, batch_size: int) -> None:
        self.world, self.batch_size = world, batch_size
        self.examples = {split: read_examples(str(Path(shapes) / split), captions) for split in SPLITS}

    def run(self, request: EvalRequest) -> str:
        """Write metrics.json and samples.png; returns a summary. UserError where the folder holds metrics."""
        out = request.out
        if (out / METRICS).exists():
            raise UserError(f"out={out} holds metrics already, and none are overwritten: choose another folder")
        judges = {
            prior_name(folder): Judge(system.open(), self.world, batch_size=self.batch_size)
            for folder, system in request.systems.items()
        }
        metrics, pixels = self.measure(judges)
        seen, first = self.examples["seen"], next(iter(judges.values()))
        right = first.right(pixels[:SHOWN], seen.scenes[:SHOWN])
        sheet = contact_sheet(to_images(pixels[:SHOWN]), seen.captions[:SHOWN], columns=8, marks=right)
        files.write(out / "samples.png", sheet)
        digest = hashlib.sha256(to_uint8(pixels).numpy().tobytes()).hexdigest()
        report = {"protocol": "shapes", "metrics": metrics, "images_sha256": digest, "versions": versions()}
        write_json(out / METRICS, report)
        return f"{metrics_text(metrics)}\nscored: {out / METRICS}, {out / 'samples.png'}"

    def measure(self, judges: Mapping[str, "Judge"]) -> tuple[dict[str, Any], Float[Tensor, "n 3 h w"]]:
        """All metrics, by the names in metrics.json, and the pictures drawn for the split `seen`, on [-1, 1]."""
        name, first = next(iter(judges.items()))
        drawn = {
            prior: {
                split: judge.draw(self.examples[split].captions, f"{prior} prior, {split} captions")
                for split in (SPLITS if judge is first else COMPARED)
            }
            for prior, judge in judges.items()
        }
        accuracy = {
            prior: {split: first.accuracy(d.pixels, self.examples[split].scenes) for split, d in splits.items()}
            for prior, splits in drawn.items()
        }
        seen = self.examples["seen"]
        unguided = first.draw(seen.captions, "no guidance, seen captions", scale=1.0)
        text_emb, image_emb = first.text_emb(seen.captions), first.image_emb(seen.pixels)
        metrics = {
            "accuracy": accuracy[name],
            "accuracy_no_guidance": first.accuracy(unguided.pixels, seen.scenes),
            "priors": {
                prior: {f"accuracy_{split}": accuracy[prior][split]["all"] for split in COMPARED}
                | {f"accuracy_{split}_se": accuracy[prior][split]["all_se"] for split in COMPARED}
                | first.similarity(drawn[prior]["seen"], text_emb, image_emb)
                | {"parameters": sum(p.numel() for p in judge.pipe.prior.network.parameters())}
                for prior, judge in judges.items()
            },
            "text_cosine_to_image": float(F.cosine_similarity(text_emb, image_emb).mean()),
            "oracle_real": {
                split: first.accuracy(real.pixels, real.scenes)["all"] for split, real in self.examples.items()
            },
            "oracle_reconstruction": {},
            "reconstruction": {},
        }
        for split, real in self.examples.items():
            reconstructed, metrics["reconstruction"][split] = first.reconstruct(real.pixels)
            metrics["oracle_reconstruction"][split] = first.accuracy(reconstructed, real.scenes)["all"]
        return metrics, drawn[name]["seen"].pixels


class Judge:
    """One system's pipeline with the two judges of its pictures: the rule-based oracle, and the system's own toy CLIP.

    Pictures are drawn `batch_size` at a time, picture i from seed i.
    """

    def __init__(self, pipe: Pipeline, world: World, *, batch_size: int) -> None:
        self.pipe, self.batch_size = pipe, batch_size
        self.oracle = ShapesOracle(world)

    def draw(self, captions: Sequence[str], what: str, **options: Any) -> ToyDrawings:
        """A picture for each caption; `what` names the progress bar, `options` the decoder's scale, steps, sampler."""
        embeddings, pixels = [], []
        for start in tqdm(range(0, len(captions), self.batch_size), desc=what, unit="batch"):
            texts = list(captions[start : start + self.batch_size])
            seeds = list(range(start, start + len(texts)))
            image_emb = self.pipe.text_to_embedding(texts, seeds=seeds)
            z = self.pipe.embedding_to_latent(image_emb, texts, seeds=seeds, **options)
            embeddings.append(image_emb)
            pixels.append(self.pipe.latent_to_image(z))
        return ToyDrawings(torch.cat(embeddings), torch.cat(pixels))

    def accuracy(self, pixels: Float[Tensor, "n 3 h w"], scenes: Sequence[Scene]) -> dict[str, float]:
        """The share of pictures that show each attribute of their scene, and "all" of them, with its standard error."""
        metric = CaptionAccuracy(oracle=self.oracle)
        metric.update(rearrange(to_uint8(pixels), "n h w c -> n c h w"), scenes)
        return {name: float(value) for name, value in metric.compute().items()}

    def right(self, pixels: Float[Tensor, "n 3 h w"], scenes: Sequence[Scene]) -> list[bool]:
        """Whether each picture shows all of its scene."""
        return [self.oracle.judge(image, scene)["all"] for image, scene in zip(to_uint8(pixels), scenes, strict=True)]

    @torch.inference_mode()
    def image_emb(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """CLIP's embedding of pictures, rounded to 8 bits as if they had been read from files."""
        prepare = ClipPixels(size=self.pipe.clip.image_size[0])
        prepared = torch.stack([prepare(image) for image in to_images(pixels)])
        return torch.cat([self.pipe.clip.encode_image(part) for part in prepared.split(256)])

    @torch.inference_mode()
    def text_emb(self, captions: Sequence[str]) -> Float[Tensor, "n d"]:
        """CLIP's embedding of captions."""
        return self.pipe.clip.encode_text(captions).emb

    @torch.inference_mode()
    def reconstruct(self, pixels: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n 3 h w"], dict[str, float]]:
        """Pictures through the autoencoder as the decoder uses it; PSNR, SSIM, L1, and the share of codes in use."""
        movq = self.pipe.movq
        z = torch.cat([movq.encode(part) for part in pixels.split(self.batch_size)])
        reconstructed = torch.cat([movq.decode(part).clamp(-1, 1) for part in z.split(self.batch_size)])
        metric = ReconstructionMetric()
        metric.update(reconstructed, pixels)
        codes = movq.codebook.embedding.num_embeddings
        usage = float(perplexity(movq.codebook.nearest(z), codes)) / codes
        return reconstructed, {name: float(value) for name, value in metric.compute().items()} | {"code_usage": usage}

    def similarity(
        self, drawn: ToyDrawings, text_emb: Float[Tensor, "n d"], image_emb: Float[Tensor, "n d"]
    ) -> dict[str, float]:
        """Drawn pictures against captions and real pictures, in the toy CLIP's features: never to be called FID."""
        drawn_emb = self.image_emb(drawn.pixels)
        score = CLIPScore()
        score.update(drawn_emb, text_emb)
        return {
            "cosine_to_image": float(F.cosine_similarity(drawn.image_emb, image_emb).mean()),
            "frechet_distance": frechet_distance(drawn_emb, image_emb),
            "clip_score": float(score.compute()["mean"]),
        }


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """The accuracies, one a line, for the terminal."""
    lines = [f"captions of {metrics['accuracy'][SPLITS[0]]['n']:.0f} pictures a split that are shown rightly:"]
    for split, accuracy in metrics["accuracy"].items():
        lines.append(f"  {split:20} {accuracy['all']:.3f} (s.e. {accuracy['all_se']:.3f})")
    lines.append(f"  {'seen, no guidance':20} {metrics['accuracy_no_guidance']['all']:.3f}")
    for name, prior in list(metrics["priors"].items())[1:]:
        seen, unseen = (prior[f"accuracy_{split}"] for split in COMPARED)
        lines.append(f"  {'prior ' + name:20} {seen:.3f} seen, {unseen:.3f} unseen")
    return "\n".join(lines)


def prior_name(folder: str) -> str:
    """A prior's name in tables, from its folder's: prior_linear is "linear"; prior, the system's own, "diffusion"."""
    return folder.removeprefix("prior").removeprefix("_") or "diffusion"


@dataclass(frozen=True)
class QuickstartPart:
    """One part of a quickstart: what it is for, how long it took, and the process's peak memory when it ended."""

    purpose: str
    seconds: float
    peak_memory_gb: float


# part -> column of its metrics.csv -> the curve's title
CURVES = {
    "clip": {"train/loss": "contrastive loss"},
    "movq": {"train/loss": "autoencoder's loss", "train/adversary": "adversary's loss"},
    "prior": {"train/loss": "diffusion prior's loss"},
    "prior_linear": {"train/loss": "linear prior's loss"},
    "prior_residual": {"train/loss": "residual prior's loss"},
    "decoder": {"train/loss": "decoder's loss"},
}


def report_on(out: Path, parts: Mapping[str, QuickstartPart], *, seed: int) -> Path:
    """Write report.json, report.html and samples.png of the quickstart in `out`; returns the page's path."""
    report = summary(json.loads((out / "scores" / METRICS).read_text())["metrics"])
    for name, part in parts.items():
        if (prior := report["priors"].get(prior_name(name))) is not None:
            prior["seconds"] = part.seconds
    report |= {
        "seconds": {name: part.seconds for name, part in parts.items()},
        "parts": {name: part.purpose for name, part in parts.items()},
        "peak_memory_gb": max(part.peak_memory_gb for part in parts.values()),
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "seed": seed,
        "command": "make quickstart",
    }
    samples = (out / "scores" / "samples.png").read_bytes()
    files.write(out / "samples.png", samples)
    write_json(out / "report.json", report)
    files.write(out / "report.html", shapes_page(report, samples, curves(out, parts)))
    return out / "report.html"


def summary(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """report.json's metrics: the headline numbers, which are those of the first prior, and all others beside them."""
    first = next(iter(metrics["priors"].values()))
    return {
        "caption_accuracy": metrics["accuracy"]["seen"]["all"],
        "caption_accuracy_heldout": metrics["accuracy"]["unseen"]["all"],
        "caption_accuracy_never": metrics["accuracy"]["never"]["all"],
        "caption_accuracy_no_guidance": metrics["accuracy_no_guidance"]["all"],
        "oracle_real": metrics["oracle_real"]["unseen"],
        "oracle_reconstruction": metrics["oracle_reconstruction"]["seen"],
        "oracle": {name: metrics[name] for name in ("oracle_real", "oracle_reconstruction")},
        "reconstruction": metrics["reconstruction"]["seen"],
        "accuracy": metrics["accuracy"],
        "priors": metrics["priors"],
        "text_cosine_to_image": metrics["text_cosine_to_image"],
        "clip_score": first["clip_score"],
        "frechet_distance": first["frechet_distance"],
    }


def curves(out: Path, parts: Mapping[str, QuickstartPart]) -> list[str]:
    """An SVG for each of CURVES, from the parts' metrics.csv; a run too short to have logged has no curve."""
    drawn = []
    for name, titles in CURVES.items():
        path = out / name / "metrics.csv"
        rows = list(csv.DictReader(path.read_text().splitlines())) if name in parts and path.is_file() else []
        for column, title in titles.items():
            if points := [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]:
                steps, values = zip(*points, strict=True)
                drawn.append(figures.curves({title: (steps, values)}, title))
    return drawn


def shapes_page(report: Mapping[str, Any], samples: bytes, curves: Sequence[str]) -> str:
    """report.html, from report.json, a contact sheet as PNG, and curves as SVG.

    KeyError or jinja2's UndefinedError names what the report lacks.
    """
    accuracy, priors, oracle = report["accuracy"], report["priors"], report["oracle"]
    attributes = ("count", "shape", "colour", "size", "relation", "background")
    compared = [split for split in accuracy if any(f"accuracy_{split}" in row for row in priors.values())]
    oracle_splits = list(dict.fromkeys(split for shares in oracle.values() for split in shares))
    return page(
        "shapes.html",
        report=report,
        samples=samples,
        curves=curves,
        timeline=figures.timeline(report["seconds"]),
        attributes=[
            [split, *(percent(row.get(name)) for name in attributes), percent(row["all"], row.get("all_se"))]
            for split, row in accuracy.items()
        ],
        kinds=[
            [split, percent(row.get("all_single")), percent(row.get("all_pair")), number(row.get("n"))]
            for split, row in accuracy.items()
        ],
        prior_splits=[f"Right, {split}" for split in compared],
        priors=[
            [
                name,
                *(percent(row.get(f"accuracy_{split}"), row.get(f"accuracy_{split}_se")) for split in compared),
                *(number(row.get(key)) for key in ("cosine_to_image", "frechet_distance", "clip_score", "parameters")),
                figures.duration(row["seconds"]) if "seconds" in row else "–",
            ]
            for name, row in priors.items()
        ],
        oracle_splits=[split.capitalize() for split in oracle_splits],
        oracle=[
            [name.removeprefix("oracle_").capitalize(), *(percent(shares.get(split)) for split in oracle_splits)]
            for name, shares in oracle.items()
        ],
        parts=[
            [name, figures.duration(took), report["parts"].get(name, "")] for name, took in report["seconds"].items()
        ],
    )
