"""The toy protocol: does a picture show what its caption says, by rule; and what does each part contribute."""

import hashlib
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

from open_kandinsky.data.reading import Skipped, read_samples
from open_kandinsky.data.shapes.world import SPLITS, Scene, World
from open_kandinsky.data.transforms import ClipPixels, to_images, to_pixels, to_uint8
from open_kandinsky.metrics.clip_score import CLIPScore
from open_kandinsky.metrics.frechet import frechet_distance
from open_kandinsky.metrics.reconstruction import Reconstruction
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
class Drawn:
    """What the system drew for captions, and the embeddings that it drew from."""

    image_emb: Float[Tensor, "n d"]
    pixels: Float[Tensor, "n 3 h w"]


def read_examples(urls: str, limit: int) -> Examples:
    """The first `limit` samples of the toy set's shards."""
    samples = []
    for sample in read_samples(urls, Skipped(max_bad_share=0.0)):
        samples.append(sample)
        if len(samples) == limit:
            break
    pixels = torch.stack([to_pixels(sample.image) for sample in samples])
    scenes = [Scene.from_json(sample.info["scene"]) for sample in samples]
    return Examples(pixels, [sample.caption for sample in samples], scenes)


@dataclass(frozen=True)
class Scored:
    """A protocol's numbers, and the pictures of its first split with whether each is right."""

    metrics: dict[str, Any]
    pictures: list[Image.Image]
    captions: list[str]
    right: list[bool]
    images_sha256: str


class ShapesProtocol:
    """Caption accuracy on the splits of the toy set; the first pipeline is the system, all are compared as priors."""

    def __init__(self, *, shapes: str, world: World, captions: int, batch_size: int) -> None:
        self.world, self.batch_size = world, batch_size
        self.examples = {split: read_examples(str(Path(shapes) / split), captions) for split in SPLITS}

    def __call__(self, pipes: Mapping[str, Pipeline]) -> Scored:
        judges = {name: Judge(pipe, self.world, batch_size=self.batch_size) for name, pipe in pipes.items()}
        drawn = {name: self.draw(judge, name, SPLITS[:2]) for name, judge in judges.items()}
        name, own = next(iter(judges.items()))
        seen, first = self.examples["seen"], drawn[name] | self.draw(own, name, SPLITS[2:])
        unguided = own.draw(seen.captions, "no guidance, seen captions", scale=1.0)
        metrics = {
            "accuracy": {split: own.accuracy(first[split].pixels, self.examples[split].scenes) for split in SPLITS},
            "accuracy_no_guidance": own.accuracy(unguided.pixels, seen.scenes),
            "priors": {name: self.of_prior(judge, drawn[name]) for name, judge in judges.items()},
            "text_cosine_to_image": own.text_cosine(seen),
            **self.of_autoencoder(own),
        }
        pixels = first["seen"].pixels
        digest = hashlib.sha256(to_uint8(pixels).numpy().tobytes()).hexdigest()
        return Scored(metrics, to_images(pixels), seen.captions, own.right(pixels, seen.scenes), digest)

    def draw(self, judge: "Judge", name: str, splits: Sequence[str]) -> dict[str, "Drawn"]:
        return {split: judge.draw(self.examples[split].captions, f"{name} prior, {split} captions") for split in splits}

    def of_prior(self, judge: "Judge", drawn: Mapping[str, "Drawn"]) -> dict[str, float]:
        """One row of the table of priors."""
        accuracy = {split: judge.accuracy(d.pixels, self.examples[split].scenes) for split, d in drawn.items()}
        row = {f"accuracy_{split}": figures["all"] for split, figures in accuracy.items()}
        row |= {f"accuracy_{split}_se": figures["all_se"] for split, figures in accuracy.items()}
        parameters = sum(p.numel() for p in judge.pipe.prior.network.parameters())
        return row | judge.against(drawn["seen"], self.examples["seen"]) | {"parameters": parameters}

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

    def draw(self, captions: Sequence[str], what: str, **options: Any) -> Drawn:
        """`options`: scale, steps and sampler of the decoder."""
        embeddings, pixels = [], []
        for rows in self._batches(range(len(captions)), what):
            texts, seeds = [captions[i] for i in rows], list(rows)
            image_emb = self.pipe.text_to_embedding(texts, seeds=seeds)
            z = self.pipe.embedding_to_latent(image_emb, texts, seeds=seeds, **options)
            embeddings.append(image_emb)
            pixels.append(self.pipe.latent_to_image(z))
        return Drawn(torch.cat(embeddings), torch.cat(pixels))

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

    def text_cosine(self, real: Examples) -> float:
        """How near captions lie to their pictures without any prior."""
        return float(F.cosine_similarity(self.text_emb(real.captions), self.image_emb(real.pixels)).mean())

    @torch.inference_mode()
    def reconstruct(self, pixels: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n 3 h w"], dict[str, float]]:
        """Through the autoencoder as the decoder uses it; with PSNR, SSIM, L1, and the share of codes in use."""
        movq = self.pipe.movq
        z = torch.cat([movq.encode(part) for part in pixels.split(self.batch_size)])
        made = torch.cat([movq.decode(part).clamp(-1, 1) for part in z.split(self.batch_size)])
        metric = Reconstruction()
        metric.update(made, pixels)
        codes = movq.codebook.embedding.num_embeddings
        usage = float(perplexity(movq.codebook.nearest(z), codes)) / codes
        return made, {name: float(value) for name, value in metric.compute().items()} | {"code_usage": usage}

    def against(self, drawn: Drawn, real: Examples) -> dict[str, float]:
        """Drawn pictures against real ones of the same captions, in the toy CLIP's features: never to be called FID."""
        seen = self.image_emb(drawn.pixels)
        true = self.image_emb(real.pixels)
        score = CLIPScore()
        score.update(seen, self.text_emb(real.captions))
        return {
            "cosine_to_image": float(F.cosine_similarity(drawn.image_emb, true).mean()),
            "frechet_distance": frechet_distance(seen, true),
            "clip_score": float(score.compute()["mean"]),
        }

    def _batches(self, rows: range, what: str) -> Iterator[range]:
        for start in tqdm(range(0, len(rows), self.batch_size), desc=what, unit="batch"):
            yield rows[start : start + self.batch_size]
