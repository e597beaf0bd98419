"""The toy protocol: does a picture show what its caption says, by rule; and what does each part contribute.

The quickstart's report: what its parts measured, as report.json, report.html and samples.png.
"""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.shapes.world import SPLITS, Scene, World
from open_kandinsky.data.tar.reading import read_samples
from open_kandinsky.data.tar.stats import SampleStats
from open_kandinsky.data.transforms import ClipPixels, to_images, to_pixels, to_uint8
from open_kandinsky.evaluation import figures
from open_kandinsky.evaluation.report import METRICS, commit, machine, shapes_page, versions, write_html, write_json
from open_kandinsky.evaluation.samples import EvalRequest
from open_kandinsky.generation.contact_sheet import samples_png
from open_kandinsky.metrics.clip_score import CLIPScore
from open_kandinsky.metrics.frechet import frechet_distance
from open_kandinsky.metrics.reconstruction import ReconstructionMetric
from open_kandinsky.metrics.shapes_oracle import CaptionAccuracy, ShapesOracle
from open_kandinsky.networks.quantizer import perplexity
from open_kandinsky.pipeline import Pipeline


@dataclass(frozen=True)
class Examples:
    """Real pictures with their captions and what was drawn."""

    pixels: Float[Tensor, "n 3 h w"]  # [-1, 1]
    captions: list[str]
    scenes: list[Scene]


@dataclass(frozen=True)
class ToyDrawings:
    """What the system drew for captions, and the embeddings that it drew from."""

    image_emb: Float[Tensor, "n d"]
    pixels: Float[Tensor, "n 3 h w"]


def read_examples(urls: str, limit: int) -> Examples:
    """The first `limit` samples of the toy set's shards."""
    samples = []
    for sample in read_samples(urls, SampleStats(max_bad_share=0.0)):
        samples.append(sample)
        if len(samples) == limit:
            break
    pixels = torch.stack([to_pixels(sample.image) for sample in samples])
    scenes = [Scene.from_json(sample.info["scene"]) for sample in samples]
    return Examples(pixels, [sample.caption for sample in samples], scenes)


@dataclass(frozen=True)
class ToyScores:
    """The numbers, and the pictures of the first split with whether each is right."""

    metrics: dict[str, Any]
    pictures: list[Image.Image]
    captions: list[str]
    right: list[bool]
    images_sha256: str

    def write(self, out: Path) -> None:
        shown = slice(0, 40)
        samples_png(out / "samples.png", self.pictures[shown], self.captions[shown], columns=8, marks=self.right[shown])
        metrics = {"protocol": "shapes", "metrics": self.metrics, "images_sha256": self.images_sha256}
        write_json(out / METRICS, metrics | {"versions": versions()})


class ShapesProtocol:
    """Caption accuracy on the splits of the toy set; the first system's is its own, all are compared as priors."""

    reads = ()
    metrics = ()

    def __init__(self, *, shapes: str, world: World, captions: int, batch_size: int) -> None:
        self.world, self.batch_size = world, batch_size
        self.examples = {split: read_examples(str(Path(shapes) / split), captions) for split in SPLITS}

    def run(self, asked: EvalRequest) -> str:
        """Write metrics.json and samples.png; ValueError where there are some."""
        if (asked.out / METRICS).exists():
            raise UserError(f"out={asked.out} holds metrics already, and none are overwritten: choose another folder")
        pipes = {called(prior): system.open() for prior, system in asked.systems.items()}
        scored = self.scored(pipes)
        asked.out.mkdir(parents=True, exist_ok=True)
        scored.write(asked.out)
        return f"{told(scored.metrics)}\nscored: {asked.out / METRICS}, {asked.out / 'samples.png'}"

    def scored(self, pipes: Mapping[str, Pipeline]) -> ToyScores:
        judges = {name: Judge(pipe, self.world, batch_size=self.batch_size) for name, pipe in pipes.items()}
        name, own = next(iter(judges.items()))
        drawn = {name: self.draw(own, name, SPLITS)}
        drawn |= {other: self.draw(judge, other, SPLITS[:2]) for other, judge in judges.items() if other != name}
        accuracy = {prior: self.accuracy(own, splits) for prior, splits in drawn.items()}
        seen, pixels = self.examples["seen"], drawn[name]["seen"].pixels
        unguided = own.draw(seen.captions, "no guidance, seen captions", scale=1.0)
        text_emb, image_emb = own.text_emb(seen.captions), own.image_emb(seen.pixels)
        metrics = {
            "accuracy": accuracy[name],
            "accuracy_no_guidance": own.accuracy(unguided.pixels, seen.scenes),
            "priors": {
                prior: accuracies(accuracy[prior])
                | own.against(drawn[prior]["seen"], text_emb, image_emb)
                | {"parameters": sum(p.numel() for p in pipe.prior.network.parameters())}
                for prior, pipe in pipes.items()
            },
            "text_cosine_to_image": float(F.cosine_similarity(text_emb, image_emb).mean()),
            **self.of_autoencoder(own),
        }
        digest = hashlib.sha256(to_uint8(pixels).numpy().tobytes()).hexdigest()
        return ToyScores(metrics, to_images(pixels), seen.captions, own.right(pixels, seen.scenes), digest)

    def draw(self, judge: "Judge", name: str, splits: Sequence[str]) -> dict[str, "ToyDrawings"]:
        return {split: judge.draw(self.examples[split].captions, f"{name} prior, {split} captions") for split in splits}

    def accuracy(self, judge: "Judge", drawn: Mapping[str, "ToyDrawings"]) -> dict[str, dict[str, float]]:
        return {split: judge.accuracy(d.pixels, self.examples[split].scenes) for split, d in drawn.items()}

    def of_autoencoder(self, judge: "Judge") -> dict[str, Any]:
        """What the oracle reads in real pictures and in their reconstructions, and how near these are."""
        figures: dict[str, Any] = {"oracle_real": {}, "oracle_reconstruction": {}, "reconstruction": {}}
        for split, real in self.examples.items():
            made, figures["reconstruction"][split] = judge.reconstruct(real.pixels)
            figures["oracle_real"][split] = judge.accuracy(real.pixels, real.scenes)["all"]
            figures["oracle_reconstruction"][split] = judge.accuracy(made, real.scenes)["all"]
        return figures


class Judge:
    """Oracle and CLIP over one pipeline. Pictures are drawn `batch_size` at a time, picture i from seed i."""

    def __init__(self, pipe: Pipeline, world: World, *, batch_size: int) -> None:
        self.pipe, self.batch_size = pipe, batch_size
        self.oracle = ShapesOracle(world)

    def draw(self, captions: Sequence[str], what: str, **options: Any) -> ToyDrawings:
        """`options`: scale, steps and sampler of the decoder."""
        embeddings, pixels = [], []
        for rows in self._batches(range(len(captions)), what):
            texts, seeds = [captions[i] for i in rows], list(rows)
            image_emb = self.pipe.text_to_embedding(texts, seeds=seeds)
            z = self.pipe.embedding_to_latent(image_emb, texts, seeds=seeds, **options)
            embeddings.append(image_emb)
            pixels.append(self.pipe.latent_to_image(z))
        return ToyDrawings(torch.cat(embeddings), torch.cat(pixels))

    def accuracy(self, pixels: Float[Tensor, "n 3 h w"], scenes: Sequence[Scene]) -> dict[str, float]:
        """The share of pictures that show all of their scene, and each attribute's; with the standard error of all."""
        metric = CaptionAccuracy(oracle=self.oracle)
        metric.update(rearrange(to_uint8(pixels), "n h w c -> n c h w"), scenes)
        return {name: float(value) for name, value in metric.compute().items()}

    def right(self, pixels: Float[Tensor, "n 3 h w"], scenes: Sequence[Scene]) -> list[bool]:
        images = to_uint8(pixels)
        return [self.oracle.judge(image, scene)["all"] for image, scene in zip(images, scenes, strict=True)]

    @torch.inference_mode()
    def image_emb(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """CLIP's embedding of pictures, as they would be read from a file."""
        prepare = ClipPixels(size=self.pipe.clip.image_size[0])
        prepared = torch.stack([prepare(image) for image in to_images(pixels)])
        return torch.cat([self.pipe.clip.encode_image(part) for part in prepared.split(256)])

    @torch.inference_mode()
    def text_emb(self, captions: Sequence[str]) -> Float[Tensor, "n d"]:
        return self.pipe.clip.encode_text(captions).emb

    @torch.inference_mode()
    def reconstruct(self, pixels: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n 3 h w"], dict[str, float]]:
        """Through the autoencoder as the decoder uses it; with PSNR, SSIM, L1, and the share of codes in use."""
        movq = self.pipe.movq
        z = torch.cat([movq.encode(part) for part in pixels.split(self.batch_size)])
        made = torch.cat([movq.decode(part).clamp(-1, 1) for part in z.split(self.batch_size)])
        metric = ReconstructionMetric()
        metric.update(made, pixels)
        codes = movq.codebook.embedding.num_embeddings
        usage = float(perplexity(movq.codebook.nearest(z), codes)) / codes
        return made, {name: float(value) for name, value in metric.compute().items()} | {"code_usage": usage}

    def against(
        self, drawn: ToyDrawings, text_emb: Float[Tensor, "n d"], image_emb: Float[Tensor, "n d"]
    ) -> dict[str, float]:
        """Drawn pictures against captions and real pictures, in the toy CLIP's features: never to be called FID."""
        seen = self.image_emb(drawn.pixels)
        score = CLIPScore()
        score.update(seen, text_emb)
        return {
            "cosine_to_image": float(F.cosine_similarity(drawn.image_emb, image_emb).mean()),
            "frechet_distance": frechet_distance(seen, image_emb),
            "clip_score": float(score.compute()["mean"]),
        }

    def _batches(self, rows: range, what: str) -> Iterator[range]:
        for start in tqdm(range(0, len(rows), self.batch_size), desc=what, unit="batch"):
            yield rows[start : start + self.batch_size]


def told(metrics: Mapping[str, Any]) -> str:
    """What a person wants to know of the numbers, a line each."""
    lines = [f"captions of {metrics['accuracy'][SPLITS[0]]['n']:.0f} pictures a split that are shown rightly:"]
    for split, found in metrics["accuracy"].items():
        lines.append(f"  {split:20} {found['all']:.3f} (s.e. {found['all_se']:.3f})")
    lines.append(f"  {'seen, no guidance':20} {metrics['accuracy_no_guidance']['all']:.3f}")
    for name, found in list(metrics["priors"].items())[1:]:
        seen, unseen = (f"accuracy_{split}" for split in SPLITS[:2])
        lines.append(f"  {'prior ' + name:20} {found[seen]:.3f} seen, {found[unseen]:.3f} unseen")
    return "\n".join(lines)


def accuracies(splits: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """A prior's row: of each split the share that is all right, and its standard error. `never` is the system's own."""
    row = {f"accuracy_{split}": splits[split]["all"] for split in SPLITS[:2]}
    return row | {f"accuracy_{split}_se": splits[split]["all_se"] for split in SPLITS[:2]}


def called(folder: str) -> str:
    """What a prior is called in tables: "prior_linear" is linear, "prior" alone is the system's own, diffusion."""
    return folder.removeprefix("prior").removeprefix("_") or "diffusion"


@dataclass(frozen=True)
class QuickstartPart:
    """One part of a quickstart: what it is for, how long it took, and the process's peak memory when it ended."""

    purpose: str
    seconds: float
    peak_memory_gb: float


CURVES = {
    "clip": {"train/loss": "contrastive loss"},
    "movq": {"train/loss": "autoencoder's loss", "train/adversary": "adversary's loss"},
    "prior": {"train/loss": "diffusion prior's loss"},
    "prior_linear": {"train/loss": "linear prior's loss"},
    "prior_residual": {"train/loss": "residual prior's loss"},
    "decoder": {"train/loss": "decoder's loss"},
}


def report_on(out: Path, parts: Mapping[str, QuickstartPart], *, seed: int) -> Path:
    """Write the three files to `out`; returns the page's path."""
    report = summary(json.loads((out / "scores" / "metrics.json").read_text())["metrics"])
    for name, part in parts.items():
        if (prior := report["priors"].get(called(name))) is not None:
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
    drawn = {title: figures.curves({title: series}, title) for title, series in curves(out, parts).items()}
    write_json(out / "report.json", report)
    write_html(out / "report.html", shapes_page(report, samples, drawn))
    return out / "report.html"


def summary(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The headline numbers under the names that other programs read, and all of the metrics beside them."""
    own = next(iter(metrics["priors"].values()))
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
        "clip_score": own["clip_score"],
        "frechet_distance": own["frechet_distance"],
    }


def curves(out: Path, parts: Mapping[str, QuickstartPart]) -> dict[str, tuple[list[int], list[float]]]:
    """Title -> (steps, values), from each part's metrics.csv; a run too short to have logged has no curve."""
    found = {}
    for name, titles in CURVES.items():
        path = out / name / "metrics.csv"
        rows = list(csv.DictReader(path.read_text().splitlines())) if name in parts and path.is_file() else []
        for column, title in titles.items():
            if points := [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]:
                found[title] = ([step for step, _ in points], [value for _, value in points])
    return found
