"""CMMD between two published sets of pictures."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from open_kandinsky.evaluation.coco.preparation import Preparation
from open_kandinsky.evaluation.scoring.extractors import ClipFeatures, Prepared, published_clip
from open_kandinsky.evaluation.selfcheck.check import Wanted
from open_kandinsky.evaluation.selfcheck.golden import Figure
from open_kandinsky.evaluation.selfcheck.sample import Sample
from open_kandinsky.evaluation.selfcheck.weights import absent, fetching
from open_kandinsky.metrics.kernel import cmmd
from open_kandinsky.weights.published import Published


@dataclass(frozen=True, kw_only=True)
class CmmdOfSamples:
    """cmmd-pytorch's example, which has one picture in each set."""

    name: str
    golden: Figure
    real: Sample
    generated: Sample
    clip: ClipFeatures
    preparation: Preparation

    def wanted(self) -> list[Wanted]:
        return [*self.real.wanted(), *self.generated.wanted(), *absent(self.clip.shelf, self.weights)]

    @property
    def weights(self) -> Published:
        return published_clip(self.clip.model_name, self.clip.pretrained)

    def fetch(self) -> None:
        for sample in (self.real, self.generated):
            sample.fetch()
            sample.pictures()
        with fetching(self.weights):
            _ = self.clip.weights

    def measure(self) -> float:
        return cmmd(self.embedded(self.real), self.embedded(self.generated)).value

    def embedded(self, sample: Sample) -> Float[Tensor, "n d"]:
        """Every picture counts twice: our CMMD asks for two of each, and as published, with its bias, it stays the same
        when a set is doubled."""
        images = sample.pictures()
        found = Prepared(self.clip, self.preparation)(images, [""] * len(images))
        return found["image"].repeat(2, 1)

    def unpublished(self) -> dict[str, str]:
        return self.real.unpublished() | self.generated.unpublished()
