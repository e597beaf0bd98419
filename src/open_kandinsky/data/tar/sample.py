"""A sample of an img2dataset shard: its members as they lie there, and the image and caption that they hold.

img2dataset's side files: beside NNNNN.tar lies NNNNN.parquet, with a row for each sample that it asked for.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

from PIL import Image

from open_kandinsky.core.errors import BadSample, UserError
from open_kandinsky.data.tar.opening import open_url
from open_kandinsky.data.tar.stats import SampleStats
from open_kandinsky.data.transforms import open_image

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json")


class Raw(NamedTuple):
    """A sample's members as they lie in the shard: extension -> bytes.

    `facts`: its row of the shard's side file; `large`: a member that was too large to be read, empty where none was.
    """

    key: str
    url: str
    members: dict[str, bytes]
    facts: Mapping[str, Any] = MappingProxyType({})
    large: str = ""


class Sample(NamedTuple):
    """A sample that can be used; `info` is its json, empty where it has none."""

    key: str
    image: Image.Image
    caption: str
    info: dict[str, Any]


def stem(url: str) -> str:
    """The shard's name without folder and ending."""
    return PurePosixPath(url).stem


def whole(raw: Raw) -> bool:
    """Whether a sample at a tar's cut has all that training needs."""
    return any(raw.members.get(name) for name in IMAGES) and any(raw.members.get(name) for name in TEXTS)


def decode(raw: Raw, max_pixels: int) -> Sample:
    """Raises BadSample where a member is missing or unreadable."""
    refuse_large(raw)
    empty = [extension for extension, data in raw.members.items() if not data]
    if empty:
        raise BadSample("zero-byte member", f".{empty[0]}")
    info = read_info(raw)
    return Sample(raw.key, read_image(raw, max_pixels), read_caption(raw, info), info)


def refuse_large(raw: Raw) -> None:
    """Raises BadSample for a sample with a member that was not read."""
    if raw.large:
        raise BadSample("member too large", raw.large)


def read_info(raw: Raw) -> dict[str, Any]:
    """The sample's json (img2dataset's is optional), and what the side file knows besides."""
    try:
        info = json.loads(raw.members.get("json", b"{}"))
    except (ValueError, RecursionError) as error:
        raise BadSample("unreadable json", str(error)) from error
    if not isinstance(info, dict):
        raise BadSample("unreadable json", f"a {type(info).__name__}, expected an object")
    return {**raw.facts, **info}


def parts(raw: Raw) -> str:
    """What a sample has, and why it may be no more."""
    return f"it has {', '.join(raw.members)} (a sample's files must be neighbours in their tar)"


def image_bytes(raw: Raw) -> bytes:
    """The first image member, encoded. Raises BadSample where there is none."""
    data = next((raw.members[extension] for extension in IMAGES if extension in raw.members), None)
    if data is None:
        raise BadSample("missing image", parts(raw))
    return data


def read_image(raw: Raw, max_pixels: int) -> Image.Image:
    """The first image member, decoded."""
    data = image_bytes(raw)
    try:
        return open_image(data, max_pixels=max_pixels)
    except ValueError as error:
        raise BadSample("unreadable image", str(error)) from error


def read_text(raw: Raw) -> str | None:
    """The txt member; None where there is none."""
    try:
        return raw.members["txt"].decode("utf-8") if "txt" in raw.members else None
    except UnicodeDecodeError as error:
        raise BadSample("unreadable caption", str(error)) from error


def read_caption(raw: Raw, info: dict[str, Any]) -> str:
    """The txt member, or the json's caption."""
    caption = read_text(raw) if "txt" in raw.members else info.get("caption")
    if not isinstance(caption, str) or not caption.strip():
        raise BadSample("missing caption", f"found {caption!r}; {parts(raw)}")
    return caption.strip()


KEY = "key"
MISSING, BROKEN = "missing side file", "unreadable side file"


class Facts:
    """The rows of a side file by sample key; made into Python objects where they are asked for."""

    def __init__(self, columns: Mapping[str, Any], keys: Sequence[str]) -> None:
        self.columns = columns
        self.rows = {str(key): row for row, key in enumerate(keys)}

    def of(self, key: str) -> dict[str, Any]:
        """A sample's row, without what is null there; empty where it has none. Folders in its name do not count."""
        row = self.rows.get(key.rpartition("/")[2])
        if row is None:
            return {}
        found = {name: column[row].as_py() for name, column in self.columns.items()}
        return {name: value for name, value in found.items() if value is not None}


NOTHING = Facts({}, [])


class NoSidecars:
    """The json of each sample says all that is known of it."""

    def facts(self, url: str, tally: SampleStats) -> Facts:
        return NOTHING


class ParquetSidecars:
    """`columns` of each shard's parquet file: a score that was computed later need not be written into the tars.

    A file that is missing or broken is remarked in the tally, and its shard's samples come without it.
    """

    def __init__(self, *, columns: Sequence[str]) -> None:
        if not columns:
            raise UserError("data.parquet_columns=[]: name those that are wanted, or null for none")
        self.columns = list(columns)

    def facts(self, url: str, tally: SampleStats) -> Facts:
        """Raises PermissionError for a file that may not be read."""
        try:
            return self.read(beside(url))
        except PermissionError:
            raise
        except FileNotFoundError:
            tally.remark(MISSING, shard=url)
        except (OSError, ValueError):
            tally.remark(BROKEN, shard=url)
        return NOTHING

    def read(self, url: str) -> Facts:
        """Raises OSError, or ValueError where it is no parquet file or has no keys. A column may be absent."""
        from pyarrow import ArrowException, parquet  # only those who have side files need it

        try:
            with open_url(url) as file, parquet.ParquetFile(file) as source:
                held = [name for name in self.columns if name in source.schema_arrow.names]
                table = source.read(columns=[KEY, *held])
            return Facts({name: table.column(name) for name in held}, table.column(KEY).to_pylist())
        except (ArrowException, KeyError) as error:
            raise UserError(f"{url!r} is no side file of img2dataset's: {error}") from error


def beside(url: str) -> str:
    """The side file's address. FileNotFoundError for a shard that is not named *.tar, such as a command's."""
    if url.startswith("pipe:") or not url.endswith(".tar"):
        raise FileNotFoundError(f"no side file can lie beside {url!r}")
    return f"{url.removesuffix('.tar')}.parquet"
