"""Measures published pictures again and compares the results with the published values.

conf/selfcheck.yaml is the table of checks: published value, tolerance, source, and a measurement with its files. This
module fetches the files, measures and compares. Each kind of file (FetchedFiles, EvaluatorFile, PngFolder, CocoFolder)
has three methods:

- `missing()`: the files that are not on this machine, with their source
- `fetch()`: download them, and read all of them once. ConnectionError where a server cannot be reached, ValueError for
  everything else that a person can mend
- `unpublished()`: after `fetch`, the SHA-256 of the files of which none has been published
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
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
    Pictures,
    PreparedExtractor,
    published_clip,
)
from open_kandinsky.evaluation.preparation import Preparation
from open_kandinsky.evaluation.report import lines_sha256
from open_kandinsky.evaluation.samples import REAL_BLOCK, RealPictures, SampleBlock
from open_kandinsky.metrics.frechet import cross_checked, frechet_from_moments, moments
from open_kandinsky.metrics.kernel import cmmd
from open_kandinsky.weights import published, store
from open_kandinsky.weights.published import EVALUATORS, INCEPTION, FoundWeights, PublishedFile

FORMATS = ("JPEG", "PNG")
OK, DIFFERS, NOT_RUN = "ok", "differs", "not run"

Value = float | str


class MissingFile(NamedTuple):
    """A file that is not on this machine: where it goes, where it comes from, and how to recognise it."""

    path: Path
    url: str
    known_by: str


@dataclass(frozen=True)
class FetchedFiles:
    """Published pictures, or an npz of mu and sigma, in one folder; each file is named by the end of its URL.

    Each of `files` has `url` and `sha256`, which is None where none is published. Files that a person put there are
    kept.
    """

    folder: str
    files: Sequence[Mapping[str, str | None]]

    @property
    def remote(self) -> dict[Path, RemoteArchive]:
        """Local path -> published file."""
        archives = [RemoteArchive(url=str(file["url"]), size=None, sha256=file["sha256"]) for file in self.files]
        return {Path(self.folder) / archive.name: archive for archive in archives}

    def missing(self) -> list[MissingFile]:
        absent = ((path, file) for path, file in self.remote.items() if not path.is_file())
        return [MissingFile(path, file.url, known_by(file.sha256)) for path, file in absent]

    def fetch(self) -> None:
        """ConnectionError as `download`; ValueError for a file of another hash, and for one that cannot be read."""
        for path, file in self.remote.items():
            if not path.is_file():
                download(file, path)
            elif wrong := difference(path, file):
                raise UserError(f"{path}: {wrong}; nothing is overwritten: remove it to fetch it again")
        self.read()

    def unpublished(self) -> dict[str, str]:
        return {str(path): store.sha256(path) for path, file in self.remote.items() if file.sha256 is None}

    def read(self) -> list[Any]:
        """RGB pictures, or Moments from an npz."""
        return [
            scores.read_moments(path, {}, accept_unknown=True) if path.suffix == ".npz" else read_rgb(path)
            for path in self.remote
        ]


def read_rgb(path: Path) -> Image.Image:
    """A picture in RGB. ValueError for a file that is none, such as a login page that was saved under its name."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.convert("RGB")
    except OSError as error:
        raise UserError(f"{path}: no picture ({error}); remove it to fetch it again") from error


def known_by(sha256: str | None) -> str:
    return f"SHA-256 {sha256}" if sha256 else "hash not published"


@dataclass(frozen=True)
class EvaluatorFile:
    """The weights of one evaluator, which `find` fetches where they are missing; measured is their SHA-256."""

    shelf: EvaluatorWeights
    file: PublishedFile
    find: Callable[[], FoundWeights]

    def missing(self) -> list[MissingFile]:
        folder, file = self.shelf.place, self.file
        present = any(path.is_file() for path in published.candidates(file, folder))
        return [] if present else [MissingFile(folder / file.file, file.url or file.what, known_by(file.sha256))]

    def fetch(self) -> None:
        """`published.find` raises one ValueError for everything; its cause says whether the server was reached."""
        try:
            self.find()
        except ValueError as error:
            cause = error.__cause__
            if isinstance(cause, URLError | HTTPException | ConnectionError | TimeoutError):
                raise ConnectionError(f"{self.file.file}: {getattr(cause, 'reason', cause)}") from error
            raise

    def unpublished(self) -> dict[str, str]:
        return {}

    def inputs(self) -> "list[EvaluatorFile]":
        return [self]

    def measure(self) -> str:
        return self.find().sha256


@dataclass(frozen=True)
class PngFolder:
    """A folder of `n` PNGs, in the order of their names and without captions, that a person unpacks from `url`."""

    name: str
    folder: str
    n: int
    url: str

    @cached_property
    def paths(self) -> list[Path]:
        return sorted(Path(self.folder).glob("*.png"))

    def missing(self) -> list[MissingFile]:
        archive = f"by hand, with a browser: an archive of {self.n:,} PNGs, unpacked; hash not published"
        return [] if len(self.paths) == self.n else [MissingFile(Path(self.folder), self.url, archive)]

    def fetch(self) -> None:
        """Fetches nothing: the archive is given to browsers alone. ValueError unless there are `n` files."""
        if (there := len(self.paths)) != self.n:
            raise UserError(f"{self.folder}: {there:,} PNGs, {self.n:,} were published; to be put there by hand")

    def unpublished(self) -> dict[str, str]:
        """One hash for the folder, over the lines `name SHA-256`."""
        return {self.folder: lines_sha256([f"{path.name} {store.sha256(path)}" for path in self.paths])}

    def first_blocks(self, n: int) -> list[SampleBlock]:
        return samples.blocks(n, REAL_BLOCK)

    def pictures(self, block: SampleBlock) -> list[Image.Image]:
        return [read_rgb(self.paths[row]) for row in block.rows]

    def captions(self, block: SampleBlock) -> list[str]:
        return [""] * len(block.rows)

    def converted(self, block: SampleBlock) -> dict[str, int]:
        return {}

    def source(self, block: SampleBlock) -> str:
        """Of names and sizes: a picture that was replaced usually has another size, which costs no reading."""
        paths = [self.paths[row] for row in block.rows]
        return lines_sha256([f"{path.name} {path.stat().st_size}" for path in paths])


@dataclass(frozen=True)
class CocoFolder:
    """The `n` real pictures of COCO in `folder`, as `make coco` leaves them."""

    folder: str | None
    n: int

    def missing(self) -> list[MissingFile]:
        return []

    def fetch(self) -> None:
        self.open()

    def unpublished(self) -> dict[str, str]:
        return {}

    def open(self) -> Coco:
        """ValueError where the set is not whole."""
        if self.folder is None:
            raise UserError("coco=null: give the folder of val2014, as `make coco` leaves it")
        coco = Coco.open(self.folder)
        if (there := len(coco.images)) != self.n:
            raise UserError(f"coco={self.folder}: {there:,} pictures, where the published number is of {self.n:,}")
        return coco


@dataclass(frozen=True, kw_only=True)
class FidToMoments:
    """FID of pictures to a published mean and covariance, the one npz of `moments`."""

    pictures: FetchedFiles
    moments: FetchedFiles
    inception: InceptionFeatures
    preparation: Preparation

    def inputs(self) -> list[FetchedFiles | EvaluatorFile]:
        weights = EvaluatorFile(self.inception.shelf, INCEPTION, lambda: self.inception.weights)
        return [self.pictures, self.moments, weights]

    def measure(self) -> float:
        images, (real,) = self.pictures.read(), self.moments.read()
        pool = PreparedExtractor(self.inception, self.preparation)(images, [""] * len(images))["pool"]
        return frechet_from_moments(*moments(pool), *real)


@dataclass(frozen=True, kw_only=True)
class CmmdOfPictures:
    """CMMD between two sets of pictures, with its bias."""

    real: FetchedFiles
    generated: FetchedFiles
    clip: ClipFeatures
    preparation: Preparation

    def inputs(self) -> list[FetchedFiles | EvaluatorFile]:
        file = published_clip(self.clip.model_name, self.clip.pretrained)
        return [self.real, self.generated, EvaluatorFile(self.clip.shelf, file, lambda: self.clip.weights)]

    def measure(self) -> float:
        return cmmd(self.embeddings(self.real), self.embeddings(self.generated)).value

    def embeddings(self, files: FetchedFiles) -> Float[Tensor, "n d"]:
        """Every picture twice: our CMMD needs two of each set, and with its bias it is the same for doubled sets."""
        images = files.read()
        return PreparedExtractor(self.clip, self.preparation)(images, [""] * len(images))["image"].repeat(2, 1)


@dataclass(frozen=True, kw_only=True)
class FidToCoco:
    """FID of a folder of pictures to COCO's under one of our protocols: all of `evaluate` but the drawing.

    Features are kept in `work`, so that a run that was stopped goes on.
    """

    pictures: PngFolder
    coco: CocoFolder
    protocol: CocoProtocol
    work: str

    def inputs(self) -> list[PngFolder | CocoFolder | EvaluatorFile]:
        inception = self.protocol.inception
        return [self.pictures, self.coco, EvaluatorFile(inception.shelf, INCEPTION, lambda: inception.weights)]

    def measure(self) -> float:
        coco = self.coco.open()
        ids = self.protocol.real_ids(coco, [])
        real = self.pool(RealPictures(ids, [""] * len(ids), coco), self.protocol.real, len(ids))
        return cross_checked(real, self.pool(self.pictures, self.protocol.generated, self.pictures.n))

    def pool(self, pictures: Pictures, preparation: Preparation, n: int) -> Float[Tensor, "n d"]:
        features = Features(Path(self.work), pictures, PreparedExtractor(self.protocol.inception, preparation), n)
        features.extract()
        return features.read()["pool"]


Measurement = EvaluatorFile | FidToMoments | CmmdOfPictures | FidToCoco


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the table. `value` is a number, or a SHA-256 or the published beginning of one."""

    name: str
    value: Value
    tolerance: float | None  # how far from a number another machine may come out; None for a hash
    source: str  # who published the value, and where
    measurement: Measurement

    def agrees(self, measured: Value) -> bool:
        """Whether a hash begins as published, or a number is within the tolerance; NaN and infinity never agree."""
        if isinstance(self.value, str):
            assert self.value, "every file agrees with an empty hash"
            return str(measured).startswith(self.value)
        assert not isinstance(measured, str) and self.tolerance is not None
        return abs(measured - self.value) <= self.tolerance

    def missing(self) -> list[MissingFile]:
        return [file for part in self.measurement.inputs() for file in part.missing()]

    def obstacle(self) -> ConnectionError | ValueError | None:
        """Fetch every input; returns the error that stopped it."""
        try:
            for part in self.measurement.inputs():
                part.fetch()
        except (ConnectionError, ValueError) as error:
            return error
        return None


def weights_checks(*, shelf: EvaluatorWeights, clip: Mapping[str, str]) -> list[Check]:
    """A check for Inception, DINOv2, VGG16, and each CLIP of `clip`, which maps open_clip's model to its weights' name.

    A file of another hash is measured too: the check is there to say so. ValueError for a CLIP of which open_clip knows
    no hash.
    """
    clips = {f"{model} ({by})": published_clip(model, by) for model, by in clip.items()}
    if bare := [name for name, file in clips.items() if not file.sha256]:
        raise UserError(f"clip: of {bare[0]} no hash is published, so there is nothing to check it by; leave it out")
    checks = []
    for file in (*EVALUATORS, *clips.values()):
        find = cache(partial(published.find, file, shelf.place, accept_unknown=True))
        about = {"name": f"weights: {file.file}", "source": file.url or file.what, "value": str(file.sha256)}
        checks.append(Check(**about, tolerance=None, measurement=EvaluatorFile(shelf, file, find)))
    return checks


@dataclass(frozen=True)
class CheckResult:
    """What was measured, or None and the reason why nothing was."""

    check: Check
    measured: Value | None
    reason: str | None = None

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return NOT_RUN
        return OK if self.check.agrees(self.measured) else DIFFERS

    @property
    def difference(self) -> float | None:
        """Measured less published; None for a hash, and where nothing was measured."""
        if isinstance(self.measured, str) or isinstance(self.check.value, str) or self.measured is None:
            return None
        return self.measured - self.check.value


def run(checks: Sequence[Check]) -> Iterator[CheckResult]:
    """Fetch the files of all checks, then measure and yield one result after another.

    ValueError, with every file that has to be put in place by hand, if no check can run and one of them for want of a
    network.
    """
    obstacles = [check.obstacle() for check in checks]
    offline = [str(error) for error in obstacles if isinstance(error, ConnectionError)]
    if offline and None not in obstacles:
        title = "eval-selfcheck needs a network (or these files put here by hand); nothing was checked"
        reasons = [f"{c.name}: {e}" for c, e in zip(checks, obstacles, strict=True) if isinstance(e, ValueError)]
        raise UserError("\n".join([title, *by_hand(checks), *reasons, f"no network: {offline[0]}"]))
    samples.make_deterministic()
    for check, error in zip(checks, obstacles, strict=True):
        if error is None:
            yield CheckResult(check, check.measurement.measure())
        else:
            yield CheckResult(check, None, f"{'no network: ' * isinstance(error, ConnectionError)}{error}")


def by_hand(checks: Sequence[Check]) -> list[str]:
    """Lines that say which missing file to put where; each file once."""
    files = dict.fromkeys(file for check in checks for file in check.missing())
    return [f"  {url}\n    to {path} ({recognised})" for path, url, recognised in files]
