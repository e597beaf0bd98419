"""Pictures that somebody else has drawn, as files of one folder.

The evaluators' weights: each file has the hash that it was published with.

Published pictures and statistics: a few files that lie in one folder, fetched where they do not.

FID of a few published pictures to published means and covariances.

CMMD between two published sets of pictures.

FID of published pictures under one of our protocols, against the real ones: all of `evaluate` but the drawing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.coco import Coco
from open_kandinsky.data.coco.fetch import RemoteArchive, difference, download
from open_kandinsky.evaluation import samples, scores
from open_kandinsky.evaluation.coco import CocoProtocol
from open_kandinsky.evaluation.features import (
    ClipFeatures,
    EvaluatorWeights,
    Features,
    InceptionFeatures,
    PreparedExtractor,
    published_clip,
)
from open_kandinsky.evaluation.preparation import REAL_BLOCK, Preparation, Real
from open_kandinsky.evaluation.report import lines_sha256
from open_kandinsky.evaluation.reproduce.checks import Figure, PublishedHash, Wanted, hashed
from open_kandinsky.evaluation.samples import SampleBlock
from open_kandinsky.metrics.frechet import Moments, cross_checked, frechet_from_moments, moments
from open_kandinsky.metrics.kernel import cmmd
from open_kandinsky.weights import published, store
from open_kandinsky.weights.published import EVALUATORS, INCEPTION, FoundWeights, PublishedFile


@dataclass(frozen=True)
class Files:
    """The PNGs of a folder in the order of their names; they have no captions here."""

    folder: Path
    name: str

    @cached_property
    def paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.png"))

    def of(self, n: int) -> list[SampleBlock]:
        return samples.blocks(n, REAL_BLOCK)

    def pictures(self, block: SampleBlock) -> list[Image.Image]:
        return [picture(self.paths[row]) for row in block.rows]

    def captions(self, block: SampleBlock) -> list[str]:
        return [""] * len(block.rows)

    def converted(self, block: SampleBlock) -> dict[str, int]:
        return {}

    def source(self, block: SampleBlock) -> str:
        """Of names and sizes: a file's size tells when it has become another, without reading it."""
        paths = [self.paths[row] for row in block.rows]
        return lines_sha256([f"{path.name} {path.stat().st_size}" for path in paths])

    def sha256(self) -> str:
        """Over the lines `name SHA-256`."""
        return lines_sha256([f"{path.name} {store.sha256(path)}" for path in self.paths])


@dataclass(frozen=True)
class WeightsFile:
    """One file's SHA-256, wherever on the shelf it was found."""

    shelf: EvaluatorWeights
    file: PublishedFile

    @property
    def name(self) -> str:
        return f"weights: {self.file.file}"

    @property
    def golden(self) -> PublishedHash:
        return PublishedHash(value=self.file.sha256 or "", source=self.file.url or self.file.what)

    def wanted(self) -> list[Wanted]:
        return absent(self.shelf, self.file)

    def fetch(self) -> None:
        with fetching(self.file):
            self.found()

    def measure(self) -> str:
        return self.found().sha256

    def unpublished(self) -> dict[str, str]:
        return {}

    def found(self) -> FoundWeights:
        """A file of another hash too: that is what this check is there to say."""
        return published.find(self.file, self.shelf.place, accept_unknown=True)


def evaluators(*, shelf: EvaluatorWeights, clip: Mapping[str, str]) -> list[WeightsFile]:
    """A check for every evaluator but CLIP, and for the CLIPs of `clip`, open_clip's model -> whose weights.

    ValueError for a CLIP of which open_clip knows no hash.
    """
    clips = {f"{model} ({by})": published_clip(model, by) for model, by in clip.items()}
    if bare := [name for name, file in clips.items() if not file.sha256]:
        raise UserError(f"clip: of {bare[0]} no hash is published, so there is nothing to check it by; leave it out")
    return [WeightsFile(shelf, file) for file in (*EVALUATORS, *clips.values())]


def absent(shelf: EvaluatorWeights, file: PublishedFile) -> list[Wanted]:
    """The file, where it lies in none of the places that are looked at."""
    if any(path.is_file() for path in published.candidates(file, shelf.place)):
        return []
    return [Wanted(shelf.place / file.file, file.url or file.what, hashed(file.sha256))]


@contextmanager
def fetching(file: PublishedFile) -> Iterator[None]:
    """ConnectionError where the weights were not found because there is no way to their server.

    To `published.find` all that stops it is one ValueError; here it decides whether a network would help.
    """
    try:
        yield
    except ValueError as error:
        cause = error.__cause__
        if isinstance(cause, URLError | HTTPException | ConnectionError | TimeoutError):
            raise ConnectionError(f"{file.file}: {getattr(cause, 'reason', cause)}") from error
        raise


FORMATS = ("JPEG", "PNG")


@dataclass(frozen=True, kw_only=True)
class PublishedPictures:
    """Each file is called as the last part of its address. What was put there by hand is kept."""

    folder: str
    files: Sequence[RemoteArchive]

    @property
    def paths(self) -> list[Path]:
        return [self.path(file) for file in self.files]

    def path(self, file: RemoteArchive) -> Path:
        return Path(self.folder) / file.name

    def wanted(self) -> list[Wanted]:
        absent = (file for file in self.files if not self.path(file).is_file())
        return [Wanted(self.path(file), file.url, hashed(file.sha256)) for file in absent]

    def fetch(self) -> None:
        """ConnectionError as `download`; ValueError where a file is not the published one, as far as that is known."""
        for file in self.files:
            path = self.path(file)
            if not path.is_file():
                download(file, path)
            elif wrong := difference(path, file):
                raise UserError(f"{path}: {wrong}; nothing is overwritten: remove it to fetch it again")

    def unpublished(self) -> dict[str, str]:
        """SHA-256, as found, of the files that none is published of."""
        paths = (self.path(file) for file in self.files if file.sha256 is None)
        return {str(path): store.sha256(path) for path in paths}

    def pictures(self) -> list[Image.Image]:
        return [picture(path) for path in self.paths]


def picture(path: Path) -> Image.Image:
    """In RGB. ValueError for a file that is none: a page that asks to log in, say, under the picture's name."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.convert("RGB")
    except OSError as error:
        raise UserError(f"{path}: no picture ({error}); remove it to fetch it again") from error


@dataclass(frozen=True, kw_only=True)
class FidToMoments:
    """text2image-benchmark's example: its five cats against its npz of val2014. `moments` is of one file."""

    name: str
    golden: Figure
    pictures: PublishedPictures
    moments: PublishedPictures
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
        extractor = PreparedExtractor(self.inception, self.preparation)
        pool = extractor(images, [""] * len(images))["pool"]
        return frechet_from_moments(*moments(pool), *self.published())

    def published(self) -> Moments:
        """ValueError for a file that is no npz of mu and sigma."""
        (path,) = self.moments.paths
        return scores.read(path, {}, accept_unknown=True)

    def unpublished(self) -> dict[str, str]:
        return self.pictures.unpublished() | self.moments.unpublished()


@dataclass(frozen=True, kw_only=True)
class CmmdOfSamples:
    """cmmd-pytorch's example, which has one picture in each set."""

    name: str
    golden: Figure
    real: PublishedPictures
    generated: PublishedPictures
    clip: ClipFeatures
    preparation: Preparation

    def wanted(self) -> list[Wanted]:
        return [*self.real.wanted(), *self.generated.wanted(), *absent(self.clip.shelf, self.weights)]

    @property
    def weights(self) -> PublishedFile:
        return published_clip(self.clip.model_name, self.clip.pretrained)

    def fetch(self) -> None:
        for sample in (self.real, self.generated):
            sample.fetch()
            sample.pictures()
        with fetching(self.weights):
            _ = self.clip.weights

    def measure(self) -> float:
        return cmmd(self.embedded(self.real), self.embedded(self.generated)).value

    def embedded(self, sample: PublishedPictures) -> Float[Tensor, "n d"]:
        """Every picture counts twice: our CMMD asks for two of each, and as published, with its bias, it stays the same
        when a set is doubled."""
        images = sample.pictures()
        found = PreparedExtractor(self.clip, self.preparation)(images, [""] * len(images))
        return found["image"].repeat(2, 1)

    def unpublished(self) -> dict[str, str]:
        return self.real.unpublished() | self.generated.unpublished()


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
    protocol: CocoProtocol
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
            _ = PreparedExtractor(self.protocol.inception, self.protocol.real).weights

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
        of_drawn = PreparedExtractor(self.protocol.inception, self.protocol.generated)
        of_real = PreparedExtractor(self.protocol.inception, self.protocol.real)
        return Features(out, self.drawn, of_drawn, self.n), Features(out, real, of_real, len(ids))

    def unpublished(self) -> dict[str, str]:
        return {self.folder: self.drawn.sha256()}
