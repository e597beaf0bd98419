"""FID of published pictures under one of our protocols, against the real ones: all of `evaluate` but the drawing."""

from dataclasses import dataclass
from pathlib import Path

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.coco import Coco
from open_kandinsky.evaluation.coco.pictures import Real
from open_kandinsky.evaluation.coco.protocol import Protocol
from open_kandinsky.evaluation.scoring.extractors import Prepared
from open_kandinsky.evaluation.scoring.features import Features
from open_kandinsky.evaluation.selfcheck.check import Wanted
from open_kandinsky.evaluation.selfcheck.files import Files
from open_kandinsky.evaluation.selfcheck.golden import Figure
from open_kandinsky.evaluation.selfcheck.weights import absent, fetching
from open_kandinsky.metrics.frechet_check import cross_checked
from open_kandinsky.weights.published import INCEPTION


@dataclass(frozen=True, kw_only=True)
class FidOfDrawn:
    """GigaGAN's pictures. Their archive is given to browsers alone, so it is fetched and unpacked by hand.

    `folder` holds its `n` PNGs, `coco` the `n_real` pictures of val2014. Features are kept in `work`: a run that was
    stopped goes on.
    """

    name: str
    golden: Figure
    url: str
    folder: str
    n: int
    coco: str | None
    n_real: int
    protocol: Protocol
    work: str

    @property
    def drawn(self) -> Files:
        return Files(Path(self.folder), self.name)

    def wanted(self) -> list[Wanted]:
        known_by = f"by hand, with a browser: an archive of {self.n:,} PNGs, unpacked; hash not published"
        pictures = [] if len(self.drawn.paths) == self.n else [Wanted(Path(self.folder), self.url, known_by)]
        return [*pictures, *absent(self.protocol.shelf, INCEPTION)]

    def fetch(self) -> None:
        if (there := len(self.drawn.paths)) != self.n:
            raise UserError(f"{self.folder}: {there:,} PNGs, {self.n:,} were published; to be put there by hand")
        self.real_set()
        with fetching(INCEPTION):
            _ = Prepared(self.protocol.inception, self.protocol.real).weights

    def real_set(self) -> Coco:
        """ValueError where it is not whole."""
        if self.coco is None:
            raise UserError("coco=null: give the folder of val2014, as `make coco` leaves it")
        coco = Coco.open(self.coco)
        if (there := len(coco.images)) != self.n_real:
            raise UserError(f"coco={self.coco}: {there:,} pictures, where the published number is of {self.n_real:,}")
        return coco

    def measure(self) -> float:
        drawn, real = self.features()
        for features in (drawn, real):
            features.extract()
        return cross_checked(real.gathered()["pool"], drawn.gathered()["pool"])

    def features(self) -> tuple[Features, Features]:
        """Of the drawn pictures, and of the real ones."""
        coco, out = self.real_set(), Path(self.work)
        ids = self.protocol.compared(coco, [])
        real = Real(ids, [""] * len(ids), coco)
        of_drawn = Prepared(self.protocol.inception, self.protocol.generated)
        of_real = Prepared(self.protocol.inception, self.protocol.real)
        return Features(out, self.drawn, of_drawn, self.n), Features(out, real, of_real, len(ids))

    def unpublished(self) -> dict[str, str]:
        return {self.folder: self.drawn.sha256()}
