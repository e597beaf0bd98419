"""A protocol: every choice that moves a COCO number, under one name. conf/protocol/ has a file for each.

What MoVQ gives back of real pictures, and with it the floors under any decoder's FID.

A decoder that draws perfect latents has the FID of reconstructions; one that draws real pictures has that of some real
pictures against all. The paper's Table 4 has the same figures on ImageNet.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from open_kandinsky.core import account
from open_kandinsky.core.errors import UserError
from open_kandinsky.core.leases import Leases, share
from open_kandinsky.core.suggest import lookup
from open_kandinsky.data.coco import Coco
from open_kandinsky.data.transforms import to_images, to_pixels
from open_kandinsky.evaluation import captions as lists
from open_kandinsky.evaluation import scores
from open_kandinsky.evaluation.captions import Caption
from open_kandinsky.evaluation.coco_report import publish
from open_kandinsky.evaluation.coco_run import Run
from open_kandinsky.evaluation.comparison import compare
from open_kandinsky.evaluation.features import (
    EvaluatorWeights,
    Extractor,
    ExtractorPair,
    Features,
    InceptionFeatures,
    LPIPSDistance,
    OwnClip,
    PreparedExtractor,
)
from open_kandinsky.evaluation.preparation import Preparation, Real
from open_kandinsky.evaluation.report import METRICS, commit, json_sha256, machine, versions, write_json
from open_kandinsky.evaluation.samples import OPTIONS, SEEDS, EvalRequest, Subject, same_threads
from open_kandinsky.evaluation.scores import Score
from open_kandinsky.metrics.frechet import cross_checked
from open_kandinsky.metrics.reconstruction import reconstruction


def every(coco: Coco, captions: Sequence[Caption]) -> list[int]:
    """All pictures of the set, as GLIDE, Imagen and GigaGAN compare with."""
    return [image.id for image in coco.images]


def paired(coco: Coco, captions: Sequence[Caption]) -> list[int]:
    """The pictures that the captions are of, as MLPerf compares with."""
    return sorted({caption.image_id for caption in captions if caption.image_id is not None})


REFERENCES = {"every": every, "paired": paired}


@dataclass(frozen=True, kw_only=True)
class CocoProtocol:
    """Numbers under two protocols differ by a factor of two for the same pictures: print a number with its protocol."""

    reads = OPTIONS

    name: str
    about: str  # whose it is, and what is not known of it
    metrics: Sequence[str]  # what is computed unless told otherwise
    captions: Callable[[Coco], list[Caption]]
    captions_sha256: str | None  # of the list that the rule gives; None where nobody has published it
    reference: str  # one of REFERENCES
    generated: Preparation  # of drawn pictures, before Inception and DINOv2 see them
    real: Preparation  # of real ones
    shelf: EvaluatorWeights
    seeds: str  # one of SEEDS
    inception: Extractor
    dinov2: Extractor
    cmmd: Extractor
    clip: Mapping[str, Extractor | None]  # for CLIP scores, which see pictures as they were drawn

    def run(self, asked: EvalRequest) -> str:
        """Draw, score and report; returns the headline."""
        coco = asked.opened_coco()
        if asked.wandb is not None:
            account.check(f"wandb={asked.wandb}", "set WANDB_MODE=offline, which writes to out for `wandb sync`")
        run = Run(
            protocol=self,
            also=asked.also,
            subject=asked.subject,
            coco=coco,
            out=asked.out,
            scores=self.scores(asked, coco),
            limit=asked.limit,
            block=asked.block,
            shared=asked.table or asked.out,
        )
        run.check()
        run.draw()
        if not asked.accept_flat:
            run.refuse_flat()
        run.extract()
        run.score()
        told = publish(run, asked.wandb)
        return told if asked.table is None else f"{told}\ncompared: {compare(asked.table)}"

    def __post_init__(self) -> None:
        lookup("reference", self.reference, REFERENCES)
        lookup("seeds", self.seeds, SEEDS)

    def compared(self, coco: Coco, captions: Sequence[Caption]) -> list[int]:
        """The ids of the real pictures."""
        return REFERENCES[self.reference](coco, captions)

    def scores(self, asked: EvalRequest, coco: Coco) -> dict[str, Score]:
        """ValueError for one that there is not, and for one that needs real pictures where an npz stands for them."""
        wanted = scores.named(asked.metrics)
        if asked.real_stats is None:
            return wanted
        if others := [name for name, score in wanted.items() if score.real and name != "fid"]:
            raise UserError(f"real_stats has no pictures, which {', '.join(others)} needs: give metrics without it")
        of = self.of_real(coco)
        return wanted | {"fid": scores.against(asked.real_stats, of, accept_unknown=asked.accept_unknown_stats)}

    def of_real(self, coco: Coco) -> dict[str, Any]:
        """What the moments of this protocol's real pictures depend on."""
        features = dict(PreparedExtractor(self.inception, self.real).identity())
        return {"features": features, "reference": self.reference, "coco_sha256": coco.sha256}

    def listed(self, coco: Coco) -> list[Caption]:
        """The captions to draw. ValueError where the list is another than was pinned."""
        found = self.captions(coco)
        digest = lists.sha256(found)
        if self.captions_sha256 not in (None, digest):
            told = f"the caption list has SHA-256 {digest}, where the protocol has {self.captions_sha256}"
            raise UserError(f"protocol={self.name}: {told}; these are other captions than the published ones")
        return found

    def extractors(self, role: str, subject: Subject) -> dict[str, ExtractorPair]:
        """By what is put behind a score's name, nothing where a protocol has one network for it."""
        alone = {"cmmd": {"": self.cmmd}, "clip": self.clip, "own_clip": {"own_clip": OwnClip(subject)}}
        if role in alone:
            return {
                label: ExtractorPair(network, network) for label, network in alone[role].items() if network is not None
            }
        network = {"inception": self.inception, "dinov2": self.dinov2}[role]
        return {"": ExtractorPair(PreparedExtractor(network, self.generated), PreparedExtractor(network, self.real))}

    def identity(self) -> dict[str, Any]:
        """All of it but what it computes, as plain values."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: plain(part) for name, part in parts.items() if name not in ("about", "metrics", "shelf")}

    def sha256(self) -> str:
        return json_sha256(self.identity())


def plain(part: Any) -> Any:
    """A part of a protocol as what JSON can say. Of an extractor, what was chosen: its weights may not be at hand."""
    if isinstance(part, Mapping):
        return {str(name): plain(one) for name, one in part.items()}
    if dataclasses.is_dataclass(part):
        return {field.name: plain(getattr(part, field.name)) for field in dataclasses.fields(part)}
    if hasattr(part, "name"):
        return {"name": part.name, "prefix": getattr(part, "prefix", "")}
    return part


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
    shelf: EvaluatorWeights
    inception: InceptionFeatures
    lpips: LPIPSDistance

    def run(self, asked: EvalRequest) -> str:
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
    asked: EvalRequest
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
        plain = PreparedExtractor(self.protocol.inception, self.protocol.preparation)
        back = PreparedExtractor(
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
