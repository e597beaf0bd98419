"""How well MoVQ reconstructs real pictures (PSNR, SSIM, L1, LPIPS, FID), which bounds any decoder's FID from below.

A decoder that draws perfect latents has the FID of reconstructions; one that draws real pictures has that of some real
pictures against all. The paper's Table 4 has the same figures on ImageNet.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from open_kandinsky.core.leases import Leases, share
from open_kandinsky.data.coco import Coco
from open_kandinsky.data.transforms import to_images, to_pixels
from open_kandinsky.evaluation.captions import Caption
from open_kandinsky.evaluation.features import (
    EvaluatorWeights,
    Features,
    InceptionFeatures,
    LPIPSDistance,
    PreparedExtractor,
)
from open_kandinsky.evaluation.preparation import Preparation
from open_kandinsky.evaluation.report import METRICS, commit, machine, versions, write_json
from open_kandinsky.evaluation.samples import EvalRequest, EvaluatedSystem, RealPictures, same_threads
from open_kandinsky.metrics.frechet import cross_checked
from open_kandinsky.metrics.reconstruction import reconstruction

FIGURES = ("psnr", "ssim", "l1", "lpips")


@dataclass(frozen=True)
class ReconstructionFeatures:
    """`figures` [b 4], FIGURES between each picture and its reconstruction, and Inception's `pool` of the latter."""

    system: EvaluatedSystem
    inception: InceptionFeatures
    lpips: LPIPSDistance
    name: str = "reconstruction"

    def identity(self) -> Mapping[str, Any]:
        evaluators = {"inception": dict(self.inception.identity()), "lpips_sha256": self.lpips.weights.sha256}
        return {"movq_sha256": self.system.weights_sha256["movq"], **evaluators}

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Mapping[str, Tensor]:
        pipe = self.system.open()
        pixels = torch.stack([to_pixels(image) for image in images])
        outputs = to_images(pipe.latent_to_image(pipe.image_to_latent(pixels.to(pipe.device))))
        x_hat = torch.stack([to_pixels(image) for image in outputs])
        figures = reconstruction(x_hat, pixels) | {"lpips": self.lpips(x_hat, pixels)}
        return {
            "pool": self.inception(outputs, captions)["pool"],
            "figures": torch.stack([figures[name].float() for name in FIGURES], dim=1),
        }


@dataclass(frozen=True, kw_only=True)
class ReconstructionProtocol:
    """Real pictures, the first `limit` of a caption list's, through the autoencoder as the decoder uses it."""

    reads = ("coco", "limit")
    metrics = ()

    name: str
    about: str
    captions: Callable[[Coco], list[Caption]]
    preparation: Preparation
    shelf: EvaluatorWeights
    inception: InceptionFeatures
    lpips: LPIPSDistance

    def run(self, request: EvalRequest) -> str:
        """Write metrics.json; returns the headline."""
        scores = ReconstructionScores(self, request, request.open_coco())
        same_threads(request.out, request.system.device)
        share([scores], Leases(request.out / "claims" / "floors"), seen=lambda: None)
        report = json.loads((request.out / METRICS).read_text(encoding="utf-8"))
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in report["metrics"].items())
        return f"{self.name}, {report['n']:,} pictures: {numbers}\nscored: {request.out / METRICS}"


@dataclass(frozen=True)
class ReconstructionScores:
    """One run's metrics.json, as work that processes share."""

    protocol: ReconstructionProtocol
    request: EvalRequest
    coco: Coco
    name: str = "floors"

    def done(self) -> bool:
        """Whether metrics.json is there, and of these pictures and features."""
        path = self.request.out / METRICS
        return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["request"] == self.identity

    def do(self) -> None:
        origin = {"versions": versions(), "made": {"commit": commit(), "machine": machine()}}
        write_json(self.request.out / METRICS, {"protocol": self.protocol.name, **self.numbers(), **origin})

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides the numbers."""
        features = [features.folder.name for features in self.features]
        return {"n": len(self.ids), "coco_sha256": self.coco.sha256, "features": features}

    @cached_property
    def ids(self) -> list[int]:
        """The pictures of the caption list, in its order, each once."""
        listed = self.protocol.captions(self.coco)[: self.request.limit]
        return list(dict.fromkeys(caption.image_id for caption in listed if caption.image_id is not None))

    @cached_property
    def features(self) -> list[Features]:
        """Of the reconstructions, of the same pictures as they are, and of all real pictures."""
        protocol, out = self.protocol, self.request.out
        plain = PreparedExtractor(protocol.inception, protocol.preparation)
        network = ReconstructionFeatures(self.request.system, protocol.inception, protocol.lpips)
        reconstructed = PreparedExtractor(network, protocol.preparation)
        every = [image.id for image in self.coco.images]
        sets = [(self.ids, reconstructed), (self.ids, plain), (every, plain)]
        return [
            Features(out, RealPictures(ids, [""] * len(ids), self.coco), extractor, len(ids)) for ids, extractor in sets
        ]

    def numbers(self) -> dict[str, Any]:
        for features in self.features:
            features.extract()
        reconstructed, some, every = (features.read() for features in self.features)
        means = dict(zip(FIGURES, reconstructed["figures"].double().mean(0).tolist(), strict=True))
        distances = {
            "rfid": cross_checked(some["pool"], reconstructed["pool"]),
            "fid_of_reconstructions": cross_checked(every["pool"], reconstructed["pool"]),
            "fid_of_real": cross_checked(every["pool"], some["pool"]),
        }
        return {"metrics": {**distances, **means}, "n": len(self.ids), "request": self.identity}
