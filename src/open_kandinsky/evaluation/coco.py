"""A protocol for COCO-30K: every choice that moves its numbers, under one name. conf/protocol/ has a file for each.

The same pictures score up to a factor of two apart under two protocols: print a number with its protocol.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from open_kandinsky.core import account
from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import lookup
from open_kandinsky.data.coco import Coco
from open_kandinsky.evaluation import captions as lists
from open_kandinsky.evaluation import scores
from open_kandinsky.evaluation.captions import Caption
from open_kandinsky.evaluation.coco_report import publish
from open_kandinsky.evaluation.coco_run import AppliedProtocol, Run, moments_about
from open_kandinsky.evaluation.comparison import compare
from open_kandinsky.evaluation.features import (
    EvaluatorWeights,
    Extractor,
    ExtractorPair,
    InceptionFeatures,
    PreparedExtractor,
    SystemClip,
)
from open_kandinsky.evaluation.preparation import Preparation
from open_kandinsky.evaluation.report import json_sha256
from open_kandinsky.evaluation.samples import OPTIONS, SEEDS, EvalRequest, EvaluatedSystem, RealPictures, Samples
from open_kandinsky.evaluation.scores import Score


def every(coco: Coco, captions: Sequence[Caption]) -> list[int]:
    """All pictures of the set, as GLIDE, Imagen and GigaGAN compare with."""
    return [image.id for image in coco.images]


def paired(coco: Coco, captions: Sequence[Caption]) -> list[int]:
    """The pictures that the captions are of, as MLPerf compares with."""
    return sorted({caption.image_id for caption in captions if caption.image_id is not None})


REFERENCES = {"every": every, "paired": paired}


@dataclass(frozen=True, kw_only=True)
class CocoProtocol:
    """The choices of one protocol, and the evaluation of a system under it."""

    reads = OPTIONS

    name: str
    about: str  # whose it is, and what is not known of it
    metrics: Sequence[str]  # the scores that are computed by default
    captions: Callable[[Coco], list[Caption]]
    captions_sha256: str | None  # of the list that the rule gives; None where nobody has published it
    reference: str  # which real pictures to compare with, one of REFERENCES
    generated: Preparation  # of drawn pictures, before Inception and DINOv2 see them
    real: Preparation  # of real ones
    shelf: EvaluatorWeights
    seeds: str  # one of SEEDS
    inception: InceptionFeatures
    dinov2: Extractor
    cmmd: Extractor
    clip: Mapping[str, Extractor | None]  # for CLIP scores, which see pictures as they were drawn

    def __post_init__(self) -> None:
        lookup("reference", self.reference, REFERENCES)
        lookup("seeds", self.seeds, SEEDS)

    def run(self, request: EvalRequest) -> str:
        """Draw, score and report; returns the headline."""
        coco = request.open_coco()
        if request.wandb is not None:
            account.check(f"wandb={request.wandb}", "set WANDB_MODE=offline, which writes to out for `wandb sync`")
        run = self.prepare(request, coco)
        run.check()
        run.draw()
        if not request.accept_flat:
            run.refuse_flat()
        run.extract()
        run.score()
        headline = publish(run, request.wandb)
        return headline if request.table is None else f"{headline}\ncompared: {compare(request.table)}"

    def prepare(self, request: EvalRequest, coco: Coco) -> Run:
        """The run before anything is drawn. ValueError for a limit beyond the caption list, and for wrong scores."""
        system, captions = request.system, self.caption_list(coco)
        n = len(captions) if request.limit is None else request.limit
        if not 1 <= n <= len(captions):
            raise UserError(f"limit={n}: from 1 to the {len(captions)} captions of protocol={self.name}")
        prompts, size = [caption.text for caption in captions], min(request.block, len(captions))
        return Run(
            protocols=[protocol.apply(system, coco, captions, n) for protocol in (self, *request.also)],
            coco=coco,
            captions=captions,
            n=n,
            samples=Samples(request.out / "pictures", prompts, system, seeds=self.seeds, size=size),
            scores=self.scores(request, coco),
            out=request.out,
            shared=request.table or request.out,
        )

    def apply(self, system: EvaluatedSystem, coco: Coco, captions: Sequence[Caption], n: int) -> AppliedProtocol:
        """What this protocol compares the first `n` pictures with."""
        ids = self.real_ids(coco, captions[:n])
        texts = {caption.image_id: caption.text for caption in captions}
        return AppliedProtocol(
            name=self.name,
            sha256=self.sha256(),
            reference=self.reference,
            real=RealPictures(ids, [texts.get(i, "") for i in ids], coco),
            preparation=self.real,
            extractors=self.extractors(system),
        )

    def real_ids(self, coco: Coco, captions: Sequence[Caption]) -> list[int]:
        return REFERENCES[self.reference](coco, captions)

    def caption_list(self, coco: Coco) -> list[Caption]:
        """The captions to draw. ValueError where the list's hash is not `captions_sha256`."""
        captions = self.captions(coco)
        digest = lists.sha256(captions)
        if self.captions_sha256 not in (None, digest):
            problem = f"the caption list has SHA-256 {digest}, where the protocol has {self.captions_sha256}"
            raise UserError(f"protocol={self.name}: {problem}; these are other captions than the published ones")
        return captions

    def scores(self, request: EvalRequest, coco: Coco) -> dict[str, Score]:
        """The requested scores. ValueError for one that does not exist, and for one that needs real pictures where an
        npz stands for them."""
        selected = scores.select(request.metrics)
        if request.real_stats is None:
            return selected
        if others := [name for name, score in selected.items() if score.real and name != "fid"]:
            raise UserError(f"real_stats has no pictures, which {', '.join(others)} needs: give metrics without it")
        about = moments_about(PreparedExtractor(self.inception, self.real), self.reference, coco)
        fid = scores.fid_to_moments(request.real_stats, about, accept_unknown=request.accept_unknown_stats)
        return selected | {"fid": fid}

    def extractors(self, system: EvaluatedSystem) -> dict[str, dict[str, ExtractorPair]]:
        """Role -> suffix of a score's name, empty where the protocol has one network for the role -> network."""
        prepared = {
            role: {"": ExtractorPair(PreparedExtractor(network, self.generated), PreparedExtractor(network, self.real))}
            for role, network in (("inception", self.inception), ("dinov2", self.dinov2))
        }
        unprepared = {"cmmd": {"": self.cmmd}, "clip": self.clip, "own_clip": {"own_clip": SystemClip(system)}}
        return prepared | {
            role: {suffix: ExtractorPair(network, network) for suffix, network in networks.items() if network}
            for role, networks in unprepared.items()
        }

    def sha256(self) -> str:
        """Of all choices but the scores, as plain values; weights need not be there."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json_sha256(
            {name: plain(part) for name, part in parts.items() if name not in ("about", "metrics", "shelf")}
        )


def plain(part: Any) -> Any:
    """A part of a protocol as JSON values; of an extractor its name and prefix."""
    if isinstance(part, Mapping):
        return {str(name): plain(one) for name, one in part.items()}
    if dataclasses.is_dataclass(part):
        return {field.name: plain(getattr(part, field.name)) for field in dataclasses.fields(part)}
    if hasattr(part, "name"):
        return {"name": part.name, "prefix": getattr(part, "prefix", "")}
    return part
