"""FID of a few published pictures to published means and covariances."""

from dataclasses import dataclass

from open_kandinsky.evaluation.coco.preparation import Preparation
from open_kandinsky.evaluation.scoring import stats
from open_kandinsky.evaluation.scoring.extractors import InceptionFeatures, Prepared
from open_kandinsky.evaluation.selfcheck.check import Wanted
from open_kandinsky.evaluation.selfcheck.golden import Figure
from open_kandinsky.evaluation.selfcheck.sample import Sample
from open_kandinsky.evaluation.selfcheck.weights import absent, fetching
from open_kandinsky.metrics.frechet import Moments, frechet_from_moments, moments
from open_kandinsky.weights.published import INCEPTION


@dataclass(frozen=True, kw_only=True)
class FidToMoments:
    """text2image-benchmark's example: its five cats against its npz of val2014. `moments` is of one file."""

    name: str
    golden: Figure
    pictures: Sample
    moments: Sample
    inception: InceptionFeatures
    preparation: Preparation

    def wanted(self) -> list[Wanted]:
        weights = absent(self.inception.shelf, INCEPTION)
        return [*self.pictures.wanted(), *self.moments.wanted(), *weights]

    def fetch(self) -> None:
        self.pictures.fetch()
        self.pictures.pictures()
        self.moments.fetch()
        self.published()
        with fetching(INCEPTION):
            _ = self.inception.weights

    def measure(self) -> float:
        images = self.pictures.pictures()
        extractor = Prepared(self.inception, self.preparation)
        pool = extractor(images, [""] * len(images))["pool"]
        return frechet_from_moments(*moments(pool), *self.published())

    def published(self) -> Moments:
        """ValueError for a file that is no npz of mu and sigma."""
        (path,) = self.moments.paths
        return stats.read(path, {}, accept_unknown=True)

    def unpublished(self) -> dict[str, str]:
        return self.pictures.unpublished() | self.moments.unpublished()
