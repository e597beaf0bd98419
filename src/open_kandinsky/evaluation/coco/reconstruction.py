"""What MoVQ gives back of real pictures, and with it the floors under any decoder's FID.

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
from open_kandinsky.evaluation.asked import Asked
from open_kandinsky.evaluation.coco.captions import Caption
from open_kandinsky.evaluation.coco.pictures import Real
from open_kandinsky.evaluation.coco.preparation import Preparation
from open_kandinsky.evaluation.report import METRICS, write_json
from open_kandinsky.evaluation.samples import same_threads
from open_kandinsky.evaluation.scoring.extractors import InceptionFeatures, LPIPSDistance, Prepared, Shelf
from open_kandinsky.evaluation.scoring.features import Features
from open_kandinsky.evaluation.subject import Subject
from open_kandinsky.evaluation.versions import commit, machine, versions
from open_kandinsky.metrics.frechet_check import cross_checked
from open_kandinsky.metrics.reconstruction import reconstruction

FIGURES = ("psnr", "ssim", "l1", "lpips")


@dataclass(frozen=True)
class GivenBack:
    """How far each picture is from its reconstruction, and Inception's features of that."""

    subject: Subject
    inception: InceptionFeatures
    lpips: LPIPSDistance
    name: str = "reconstruction"

    def identity(self) -> Mapping[str, Any]:
        evaluators = {"inception": dict(self.inception.identity()), "lpips_sha256": self.lpips.weights.sha256}
        return {"movq_sha256": self.subject.weights_sha256["movq"], **evaluators}

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Mapping[str, Tensor]:
        pipe = self.subject.open()
        pixels = torch.stack([to_pixels(image) for image in images])
        saved = to_images(pipe.latent_to_image(pipe.image_to_latent(pixels.to(pipe.device))))
        made = torch.stack([to_pixels(image) for image in saved])
        figures = reconstruction(made, pixels) | {"lpips": self.lpips(made, pixels)}
        return {
            "pool": self.inception(saved, captions)["pool"],
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
    shelf: Shelf
    inception: InceptionFeatures
    lpips: LPIPSDistance

    def run(self, asked: Asked) -> str:
        """Write metrics.json; returns the headline."""
        floors = Floors(self, asked, asked.opened_coco())
        same_threads(asked.out, asked.subject.device)
        share([floors], Leases(asked.out / "claims" / "floors"), seen=lambda: None)
        found = json.loads((asked.out / METRICS).read_text(encoding="utf-8"))
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in found["metrics"].items())
        return f"{self.name}, {found['n']:,} pictures: {numbers}\nscored: {asked.out / METRICS}"


@dataclass(frozen=True)
class Floors:
    """One run of the protocol."""

    protocol: ReconstructionProtocol
    asked: Asked
    coco: Coco
    name: str = "floors"

    def done(self) -> bool:
        path = self.asked.out / METRICS
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return bool(found) and found["request"] == json.loads(json.dumps(self.request))

    def do(self) -> None:
        made = {"versions": versions(), "made": {"commit": commit(), "machine": machine()}}
        write_json(self.asked.out / METRICS, {"protocol": self.protocol.name, **self.numbers(), **made})

    @cached_property
    def request(self) -> dict[str, Any]:
        return {"n": len(self.ids), "coco_sha256": self.coco.sha256, "features": [f.folder.name for f in self.features]}

    @cached_property
    def ids(self) -> list[int]:
        """Of the list's pictures, in order; each once."""
        listed = self.protocol.captions(self.coco)[: self.asked.limit]
        return list(dict.fromkeys(caption.image_id for caption in listed if caption.image_id is not None))

    @cached_property
    def features(self) -> list[Features]:
        """Of the reconstructions, of the same pictures as they are, and of all."""
        plain = Prepared(self.protocol.inception, self.protocol.preparation)
        back = Prepared(
            GivenBack(self.asked.subject, self.protocol.inception, self.protocol.lpips), self.protocol.preparation
        )
        some, every = self.real(self.ids), self.real([image.id for image in self.coco.images])
        sets = [(some, back), (some, plain), (every, plain)]
        return [Features(self.asked.out, real, extractor, len(real.ids)) for real, extractor in sets]

    def real(self, ids: Sequence[int]) -> Real:
        return Real(ids, [""] * len(ids), self.coco)

    def numbers(self) -> dict[str, Any]:
        for features in self.features:
            features.extract()
        back, some, every = (features.gathered() for features in self.features)
        mean = dict(zip(FIGURES, back["figures"].double().mean(0).tolist(), strict=True))
        distances = {
            "rfid": cross_checked(some["pool"], back["pool"]),
            "fid_of_reconstructions": cross_checked(every["pool"], back["pool"]),
            "fid_of_real": cross_checked(every["pool"], some["pool"]),
        }
        return {"metrics": {**distances, **mean}, "n": len(self.ids), "request": self.request}
