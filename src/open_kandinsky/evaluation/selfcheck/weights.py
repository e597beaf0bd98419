"""The evaluators' weights: each file has the hash that it was published with."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from urllib.error import URLError

from open_kandinsky.core.errors import UserError
from open_kandinsky.evaluation.scoring.extractors import Shelf, published_clip
from open_kandinsky.evaluation.selfcheck.check import Wanted, hashed
from open_kandinsky.evaluation.selfcheck.golden import Digest
from open_kandinsky.weights import published
from open_kandinsky.weights.published import EVALUATORS, Found, Published


@dataclass(frozen=True)
class WeightsFile:
    """One file's SHA-256, wherever on the shelf it was found."""

    shelf: Shelf
    file: Published

    @property
    def name(self) -> str:
        return f"weights: {self.file.file}"

    @property
    def golden(self) -> Digest:
        return Digest(value=self.file.sha256 or "", source=self.file.url or self.file.what)

    def wanted(self) -> list[Wanted]:
        return absent(self.shelf, self.file)

    def fetch(self) -> None:
        with fetching(self.file):
            self.found()

    def measure(self) -> str:
        return self.found().sha256

    def unpublished(self) -> dict[str, str]:
        return {}

    def found(self) -> Found:
        """A file of another hash too: that is what this check is there to say."""
        return published.find(self.file, self.shelf.place, accept_unknown=True)


def evaluators(*, shelf: Shelf, clip: Mapping[str, str]) -> list[WeightsFile]:
    """A check for every evaluator but CLIP, and for the CLIPs of `clip`, open_clip's model -> whose weights.

    ValueError for a CLIP of which open_clip knows no hash.
    """
    clips = {f"{model} ({by})": published_clip(model, by) for model, by in clip.items()}
    if bare := [name for name, file in clips.items() if not file.sha256]:
        raise UserError(f"clip: of {bare[0]} no hash is published, so there is nothing to check it by; leave it out")
    return [WeightsFile(shelf, file) for file in (*EVALUATORS, *clips.values())]


def absent(shelf: Shelf, file: Published) -> list[Wanted]:
    """The file, where it lies in none of the places that are looked at."""
    if any(path.is_file() for path in published.candidates(file, shelf.place)):
        return []
    return [Wanted(shelf.place / file.file, file.url or file.what, hashed(file.sha256))]


@contextmanager
def fetching(file: Published) -> Iterator[None]:
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
