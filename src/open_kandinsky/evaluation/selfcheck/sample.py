"""Published pictures and statistics: a few files that lie in one folder, fetched where they do not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.coco.download import Archive, difference, download
from open_kandinsky.evaluation.selfcheck.check import Wanted, hashed
from open_kandinsky.weights import store

FORMATS = ("JPEG", "PNG")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Each file is called as the last part of its address. What was put there by hand is kept."""

    folder: str
    files: Sequence[Archive]

    @property
    def paths(self) -> list[Path]:
        return [self.path(file) for file in self.files]

    def path(self, file: Archive) -> Path:
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
