"""One COCO evaluation: pictures are drawn once, and every protocol of the run scores the same ones.

Any number of processes may run it on one folder, each by itself: what is done is seen in the folder. An AppliedProtocol
says which real pictures and which networks a protocol compares; a Run draws, extracts features and scores; CocoScores
are one protocol's numbers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.core.leases import Leases, share
from open_kandinsky.data.coco import Coco
from open_kandinsky.evaluation import captions as lists
from open_kandinsky.evaluation import scores
from open_kandinsky.evaluation.captions import Caption
from open_kandinsky.evaluation.features import Extractor, ExtractorPair, Features
from open_kandinsky.evaluation.preparation import Preparation
from open_kandinsky.evaluation.report import json_sha256
from open_kandinsky.evaluation.samples import RealPictures, Samples
from open_kandinsky.evaluation.scores import Score


@dataclass(frozen=True, kw_only=True)
class AppliedProtocol:
    """What one protocol compares in a run."""

    name: str
    sha256: str  # of the whole protocol
    reference: str  # its rule for the real pictures
    real: RealPictures
    preparation: Preparation  # of the real pictures
    extractors: Mapping[str, Mapping[str, ExtractorPair]]  # role -> suffix of a score's name -> network


@dataclass(frozen=True, kw_only=True)
class Run:
    """The first protocol decided the captions and the seeds of `samples`; all of them score the first `n` pictures."""

    protocols: Sequence[AppliedProtocol]
    coco: Coco
    captions: Sequence[Caption]  # the whole list, also where only its beginning is scored
    n: int
    samples: Samples
    scores: Mapping[str, Score]
    out: Path
    shared: Path  # where real pictures' features lie: a folder of several runs, or `out`

    @property
    def protocol(self) -> AppliedProtocol:
        return self.protocols[0]

    def check(self) -> None:
        """Before anything is drawn: ValueError where an evaluator's weights are missing."""
        for features in self.all_features():
            assert features.extractor.identity()

    def draw(self) -> None:
        self.samples.draw(self.n, self.leases("pictures"))

    def refuse_flat(self) -> None:
        """ValueError, which names the pictures, where some have a single colour."""
        if rows := self.samples.flat(self.n):
            which = f"{len(rows):,} of {self.n:,} pictures have a single colour ({', '.join(map(str, rows[:8]))}, ...)"
            raise UserError(f"{which}: a safety filter's, or a model that collapsed? accept_flat=true scores them all")

    def extract(self) -> None:
        for features in self.all_features():
            features.extract()

    def score(self) -> None:
        units = [CocoScores(self, protocol) for protocol in self.protocols]
        share(units, self.leases("scores"), seen=lambda: None)

    def features(self, protocol: AppliedProtocol) -> list[Features]:
        """Everything that the scores read under one protocol, each once."""
        pairs = [(score, pair) for score in self.scores.values() for pair in protocol.extractors[score.reads].values()]
        every = [features for score, pair in pairs for features in self.compared(protocol, pair, score)]
        return list({features.folder: features for features in every}.values())

    def all_features(self) -> list[Features]:
        return [features for protocol in self.protocols for features in self.features(protocol)]

    def compared(self, protocol: AppliedProtocol, pair: ExtractorPair, score: Score) -> list[Features]:
        """The drawn pictures' features, and the real ones' where the score needs them."""
        drawn = Features(self.out, self.samples, pair.generated, self.n)
        return [drawn, self.real_features(protocol, pair)] if score.real else [drawn]

    def real_features(self, protocol: AppliedProtocol, pair: ExtractorPair) -> Features:
        return Features(self.shared, protocol.real, pair.real, len(protocol.real.ids))

    def leases(self, name: str) -> Leases:
        return Leases(self.out / "claims" / name)


@dataclass(frozen=True)
class CocoScores:
    """One protocol's numbers, as work that processes share, in a file whose name says what they are of."""

    run: Run
    protocol: AppliedProtocol
    cache: dict[Path, dict[str, Tensor]] = field(default_factory=dict)  # features that several scores read

    @property
    def name(self) -> str:
        return f"{self.protocol.name}-{self.run.n}-{self.key}"

    @cached_property
    def key(self) -> str:
        """A hash of the pictures, the networks and the scores."""
        about = {
            "features": sorted(f"{f.folder.name} {f.source}" for f in self.run.features(self.protocol)),
            "n": self.run.n,
            "protocol": self.protocol.sha256,
            "scores": [f"{name} {score.about}" for name, score in self.run.scores.items()],
            "coco": self.run.coco.sha256,
        }
        return json_sha256(about)[:12]

    @property
    def path(self) -> Path:
        return self.run.out / "scores" / f"{self.name}.json"

    def done(self) -> bool:
        return self.path.is_file()

    def do(self) -> None:
        self.write_real_moments()
        files.write(self.path, json.dumps(self.numbers(), indent=1))

    def read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8"))

    def write_real_moments(self) -> None:
        """Keep the moments that FID compared with, for other programs and for runs without the real pictures."""
        score = self.run.scores.get("fid")
        if score is not None and score.real:
            (pair,) = self.protocol.extractors[score.reads].values()
            pool = self.load(self.run.real_features(self.protocol, pair))["pool"]
            about = moments_about(pair.real, self.protocol.reference, self.run.coco)
            scores.write_moments(self.run.out / "stats" / f"{self.protocol.name}.npz", pool, about)

    def numbers(self) -> dict[str, float]:
        numbers = {}
        for score in self.run.scores.values():
            for suffix, pair in self.protocol.extractors[score.reads].items():
                generated, *real = map(self.load, self.run.compared(self.protocol, pair, score))
                computed = score.compute(generated, real[0] if real else {})
                numbers |= {metric_name(name, suffix, pair.real): value for name, value in computed.items()}
        return numbers

    def load(self, features: Features) -> dict[str, Tensor]:
        if features.folder not in self.cache:
            self.cache[features.folder] = features.read()
        return self.cache[features.folder]


def about(run: Run) -> dict[str, Any]:
    """All that decides the numbers, for metrics.json: the same from any number of processes, on any day."""
    protocol, system = run.protocol, run.samples.system
    return {
        "prior": system.prior,
        "protocol_sha256": protocol.sha256,
        "n": run.n,
        "n_of": len(run.captions),
        "n_real": len(protocol.real.ids),
        "images_sha256": run.samples.sha256(run.n),
        "captions_sha256": lists.sha256(run.captions[: run.n]),
        "coco_sha256": run.coco.sha256,
        "coco_is_val2014": run.coco.is_val2014,
        "weights_sha256": dict(system.weights_sha256),
        "extractors": {f.folder.name: dict(f.extractor.identity()) for f in run.all_features()},
        "drawn_with": run.samples.markers(run.n)[0]["drawn_with"],
        "seeds": [system.seed, run.samples.seeds(system.seed, range(run.n))[-1]],
    }


def metric_name(name: str, suffix: str, extractor: Extractor) -> str:
    """A number's key in metrics.json: with the network's suffix, and marked where its weights are not the published
    ones."""
    weights = getattr(extractor, "weights", None)
    mark = "" if weights is None or weights.verified else "unverified_"
    return f"{mark}{name}{'_' + suffix if suffix else ''}"


def moments_about(extractor: Extractor, reference: str, coco: Coco) -> dict[str, Any]:
    """What the moments of real pictures depend on, which their npz says."""
    return {"features": dict(extractor.identity()), "reference": reference, "coco_sha256": coco.sha256}
