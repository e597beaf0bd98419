"""One evaluation: pictures are drawn once, and every protocol that was asked for scores the same ones.

Any number of processes may run it on one folder, each by itself: what is done is seen in the folder.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.core.leases import Leases, share
from open_kandinsky.data.coco import Coco
from open_kandinsky.evaluation import captions as lists
from open_kandinsky.evaluation import scores
from open_kandinsky.evaluation.captions import Caption
from open_kandinsky.evaluation.features import Extractor, ExtractorPair, Features
from open_kandinsky.evaluation.preparation import Generated, Preparation, Real
from open_kandinsky.evaluation.report import json_sha256
from open_kandinsky.evaluation.samples import Samples, Subject
from open_kandinsky.evaluation.scores import Score


@runtime_checkable
class Rules(Protocol):
    """What a run asks a protocol."""

    @property
    def name(self) -> str: ...
    @property
    def seeds(self) -> str: ...
    @property
    def real(self) -> Preparation: ...
    def compared(self, coco: Coco, captions: Sequence[Caption]) -> list[int]: ...
    def listed(self, coco: Coco) -> list[Caption]: ...
    def extractors(self, role: str, subject: Subject) -> dict[str, ExtractorPair]: ...
    def of_real(self, coco: Coco) -> dict[str, Any]: ...
    def sha256(self) -> str: ...


@dataclass(frozen=True)
class Run:
    """`protocol` decides captions and noise; it and the protocols beside it score the first `limit` pictures."""

    protocol: Rules
    also: Sequence[Rules]
    subject: Subject
    coco: Coco
    out: Path
    scores: Mapping[str, Score]
    limit: int | None
    block: int
    shared: Path  # a folder of several runs, which have the real pictures' features in common; or `out`

    def check(self) -> None:
        """Before anything is drawn: ValueError for scores there are not, and for weights that are not at hand."""
        for protocol in self.protocols:
            for features in self.features(protocol):
                assert features.extractor.identity()

    def draw(self) -> None:
        self.samples.draw(self.n, self.leases("pictures"))

    def refuse_flat(self) -> None:
        """ValueError for pictures of a single colour, by number."""
        if rows := self.samples.flat(self.n):
            told = f"{len(rows):,} of {self.n:,} pictures have a single colour ({', '.join(map(str, rows[:8]))}, ...)"
            raise UserError(f"{told}: a safety filter's, or a model that collapsed? accept_flat=true scores them all")

    def extract(self) -> None:
        for protocol in self.protocols:
            for features in self.features(protocol):
                features.extract()

    def score(self) -> None:
        share([CocoScores(self, protocol) for protocol in self.protocols], self.leases("scores"), seen=lambda: None)

    @property
    def protocols(self) -> list[Rules]:
        return [self.protocol, *self.also]

    @cached_property
    def captions(self) -> list[Caption]:
        """Of the whole list, also where only its beginning is scored: so that more can be drawn later."""
        return self.protocol.listed(self.coco)

    @cached_property
    def n(self) -> int:
        """How many of them. ValueError for a limit that the list does not have."""
        if self.limit is not None and not 1 <= self.limit <= len(self.captions):
            told = f"from 1 to the {len(self.captions)} captions of protocol={self.protocol.name}"
            raise UserError(f"limit={self.limit}: {told}")
        return len(self.captions) if self.limit is None else self.limit

    @cached_property
    def samples(self) -> Samples:
        prompts = [caption.text for caption in self.captions]
        folder = self.out / "pictures"
        return Samples(folder, prompts, self.subject, seeds=self.protocol.seeds, size=min(self.block, len(prompts)))

    def real(self, protocol: Rules) -> Real:
        """The pictures that a protocol compares with: those of this run's captions, or all."""
        ids = protocol.compared(self.coco, self.captions[: self.n])
        texts = {caption.image_id: caption.text for caption in self.captions}
        return Real(ids, [texts.get(i, "") for i in ids], self.coco)

    def features(self, protocol: Rules) -> list[Features]:
        """All that the scores read under one protocol."""
        found = {}
        for score in self.scores.values():
            for pair in protocol.extractors(score.reads, self.subject).values():
                for features in self.both(protocol, pair)[: 1 + score.real]:
                    found[features.folder] = features
        return list(found.values())

    def both(self, protocol: Rules, pair: ExtractorPair) -> list[Features]:
        """Of the drawn pictures, and of the real ones."""
        real = self.real(protocol)
        drawn = Features(self.out, Generated(self.samples), pair.generated, self.n)
        return [drawn, Features(self.shared, real, pair.real, len(real.ids))]

    def leases(self, name: str) -> Leases:
        return Leases(self.out / "claims" / name)


@dataclass(frozen=True)
class CocoScores:
    """One protocol's numbers, in a file whose name says of what."""

    run: Run
    protocol: Rules
    held: dict[Path, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.protocol.name}-{self.run.n}-{self.key}"

    @property
    def path(self) -> Path:
        return self.run.out / "scores" / f"{self.name}.json"

    @cached_property
    def key(self) -> str:
        """Of the pictures, the networks that look at them, and the scores."""
        about = {
            "features": sorted(f"{f.folder.name} {f.source}" for f in self.run.features(self.protocol)),
            "n": self.run.n,
            "protocol": self.protocol.sha256(),
            "scores": [f"{name} {score.about}" for name, score in self.run.scores.items()],
            "coco": self.run.coco.sha256,
        }
        return json_sha256(about)[:12]

    def done(self) -> bool:
        return self.path.is_file()

    def do(self) -> None:
        self.keep_stats()
        files.write(self.path, json.dumps(self.numbers(), indent=1))

    def keep_stats(self) -> None:
        """The moments that FID compared with, for other programs and for runs without the real pictures."""
        score = self.run.scores.get("fid")
        if score is not None and score.real:
            (pair,) = self.protocol.extractors(score.reads, self.run.subject).values()
            pool = self.gathered(self.run.both(self.protocol, pair)[1])["pool"]
            path = self.run.out / "stats" / f"{self.protocol.name}.npz"
            scores.write(path, pool, self.protocol.of_real(self.run.coco))

    def read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8"))

    def numbers(self) -> dict[str, float]:
        found = {}
        for score in self.run.scores.values():
            for label, pair in self.protocol.extractors(score.reads, self.run.subject).items():
                sets = [self.gathered(features) for features in self.run.both(self.protocol, pair)[: 1 + score.real]]
                numbers = score.compute(sets[0], sets[1] if score.real else {})
                found |= {named(name, label, pair.real): value for name, value in numbers.items()}
        return found

    def gathered(self, features: Features) -> dict[str, Tensor]:
        """Read once: several scores look at the same."""
        if features.folder not in self.held:
            self.held[features.folder] = features.gathered()
        return self.held[features.folder]


def named(name: str, label: str, extractor: Extractor) -> str:
    """A number's key: with the network's label, and marked where its weights are not the published ones."""
    weights = getattr(extractor, "weights", None)
    mark = "" if weights is None or weights.verified else "unverified_"
    return f"{mark}{name}{'_' + label if label else ''}"


def about(run: Run) -> Mapping[str, Any]:
    """What the numbers are of: the same from any number of processes, and on any day."""
    protocol, subject = run.protocol, run.subject
    extractors = {
        features.folder.name: dict(features.extractor.identity())
        for one in run.protocols
        for features in run.features(one)
    }
    return {
        "prior": subject.prior,
        "protocol_sha256": protocol.sha256(),
        "n": run.n,
        "n_of": len(run.captions),
        "n_real": len(run.real(protocol).ids),
        "images_sha256": run.samples.sha256(run.n),
        "captions_sha256": lists.sha256(run.captions[: run.n]),
        "coco_sha256": run.coco.sha256,
        "coco_is_val2014": run.coco.is_val2014,
        "weights_sha256": dict(subject.weights_sha256),
        "extractors": extractors,
        "drawn_with": run.samples.markers(run.n)[0]["drawn_with"],
        "seeds": [subject.seed, run.samples.seeds(subject.seed, range(run.n))[-1]],
    }
