"""A protocol: every choice that moves a COCO number, under one name. conf/protocol/ has a file for each."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from open_kandinsky import account
from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import lookup
from open_kandinsky.data.coco import Coco
from open_kandinsky.evaluation.asked import OPTIONS, Asked
from open_kandinsky.evaluation.coco import captions as lists
from open_kandinsky.evaluation.coco.captions import Caption
from open_kandinsky.evaluation.coco.preparation import Preparation
from open_kandinsky.evaluation.coco.report.comparison import compare
from open_kandinsky.evaluation.coco.report.publish import publish
from open_kandinsky.evaluation.coco.run import Run
from open_kandinsky.evaluation.hashes import json_sha256
from open_kandinsky.evaluation.samples import SEEDS
from open_kandinsky.evaluation.scoring import scores, stats
from open_kandinsky.evaluation.scoring.extractors import OwnClip, Prepared, Shelf
from open_kandinsky.evaluation.scoring.features import Extractor, Pair
from open_kandinsky.evaluation.scoring.scores import Score
from open_kandinsky.evaluation.subject import Subject


def every(coco: Coco, captions: Sequence[Caption]) -> list[int]:
    """All pictures of the set, as GLIDE, Imagen and GigaGAN compare with."""
    return [image.id for image in coco.images]


def paired(coco: Coco, captions: Sequence[Caption]) -> list[int]:
    """The pictures that the captions are of, as MLPerf compares with."""
    return sorted({caption.image_id for caption in captions if caption.image_id is not None})


REFERENCES = {"every": every, "paired": paired}


@dataclass(frozen=True, kw_only=True)
class Protocol:
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
    shelf: Shelf
    seeds: str  # one of SEEDS
    inception: Extractor
    dinov2: Extractor
    cmmd: Extractor
    clip: Mapping[str, Extractor | None]  # for CLIP scores, which see pictures as they were drawn

    def run(self, asked: Asked) -> str:
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

    def scores(self, asked: Asked, coco: Coco) -> dict[str, Score]:
        """ValueError for one that there is not, and for one that needs real pictures where an npz stands for them."""
        wanted = scores.named(asked.metrics)
        if asked.real_stats is None:
            return wanted
        if others := [name for name, score in wanted.items() if score.real and name != "fid"]:
            raise UserError(f"real_stats has no pictures, which {', '.join(others)} needs: give metrics without it")
        of = self.of_real(coco)
        return wanted | {"fid": stats.against(asked.real_stats, of, accept_unknown=asked.accept_unknown_stats)}

    def of_real(self, coco: Coco) -> dict[str, Any]:
        """What the moments of this protocol's real pictures depend on."""
        features = dict(Prepared(self.inception, self.real).identity())
        return {"features": features, "reference": self.reference, "coco_sha256": coco.sha256}

    def listed(self, coco: Coco) -> list[Caption]:
        """The captions to draw. ValueError where the list is another than was pinned."""
        found = self.captions(coco)
        digest = lists.sha256(found)
        if self.captions_sha256 not in (None, digest):
            told = f"the caption list has SHA-256 {digest}, where the protocol has {self.captions_sha256}"
            raise UserError(f"protocol={self.name}: {told}; these are other captions than the published ones")
        return found

    def extractors(self, role: str, subject: Subject) -> dict[str, Pair]:
        """By what is put behind a score's name, nothing where a protocol has one network for it."""
        alone = {"cmmd": {"": self.cmmd}, "clip": self.clip, "own_clip": {"own_clip": OwnClip(subject)}}
        if role in alone:
            return {label: Pair(network, network) for label, network in alone[role].items() if network is not None}
        network = {"inception": self.inception, "dinov2": self.dinov2}[role]
        return {"": Pair(Prepared(network, self.generated), Prepared(network, self.real))}

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
