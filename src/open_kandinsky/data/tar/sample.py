"""Samples of img2dataset's shards: their members as bytes, the picture and caption in them, and facts about them.

A tar NNNNN.tar holds members of each sample; NNNNN.parquet beside it may hold a row of facts for each.
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
    """A sample's undecoded members: extension -> bytes.

    `facts`: its row of the side file; `large`: describes a member that was too large to be read, else empty.
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


def is_complete(raw: Raw) -> bool:
    """Whether a sample just before a tar's cut has all that training needs."""
    return any(raw.members.get(name) for name in IMAGES) and any(raw.members.get(name) for name in TEXTS)


def decode(raw: Raw, max_pixels: int) -> Sample:
    """Raises BadSample where a member is missing or unreadable."""
    refuse_unusable(raw)
    if raw.members.get("txt") == b"":
        raise BadSample("zero-byte member", ".txt")
    info = read_info(raw)
    return Sample(raw.key, read_image(raw, max_pixels), read_caption(raw, info), info)


def refuse_unusable(raw: Raw) -> None:
    """Raises BadSample for a member that was too large to be read, or is empty.

    An empty text is left to whatever reads captions: img2dataset writes one where it was given none.
    """
    if raw.large:
        raise BadSample("member too large", raw.large)
    empty = [kind for kind, data in raw.members.items() if not data and kind != "txt"]
    if empty:
        raise BadSample("zero-byte member", f".{empty[0]}")


def read_info(raw: Raw) -> dict[str, Any]:
    """The sample's json, empty where it has none, over its row of the side file."""
    try:
        info = json.loads(raw.members.get("json", b"{}"))
    except (ValueError, RecursionError) as error:
        raise BadSample("unreadable json", str(error)) from error
    if not isinstance(info, dict):
        raise BadSample("unreadable json", f"a {type(info).__name__}, expected an object")
    return {**raw.facts, **info}


def describe_members(raw: Raw) -> str:
    """The members of a sample, and why others may be missing, for messages."""
    return f"it has {', '.join(raw.members)} (a sample's files must be neighbours in their tar)"


def image_bytes(raw: Raw) -> bytes:
    """The first image member, encoded. Raises BadSample where there is none."""
    data = next((raw.members[extension] for extension in IMAGES if extension in raw.members), None)
    if data is None:
        raise BadSample("missing image", describe_members(raw))
    return data


def read_image(raw: Raw, max_pixels: int, background: str = "white") -> Image.Image:
    """The first image member, decoded; transparency is composited on `background`."""
    data = image_bytes(raw)
    try:
        return open_image(data, max_pixels=max_pixels, background=background)
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
        raise BadSample("missing caption", f"found {caption!r}; {describe_members(raw)}")
    return caption.strip()


KEY = "key"
MISSING, BROKEN = "missing side file", "unreadable side file"


class Facts:
    """The rows of a side file by sample key; a row becomes Python objects when it is looked up."""

    def __init__(self, columns: Mapping[str, Any], keys: Sequence[str]) -> None:
        self.columns = columns
        self.rows = {str(key): row for row, key in enumerate(keys)}

    def of(self, key: str) -> dict[str, Any]:
        """A sample's row without its null values; empty where it has none. Folders in a key do not count."""
        row = self.rows.get(key.rpartition("/")[2])
        columns = {} if row is None else self.columns
        return {name: value for name, column in columns.items() if (value := column[row].as_py()) is not None}


NO_FACTS = Facts({}, [])


class NoSidecars:
    """No side files: all facts of a sample are in its json."""

    def facts(self, url: str, stats: SampleStats) -> Facts:
        return NO_FACTS


class ParquetSidecars:
    """`columns` of each shard's parquet file: a score that was computed later need not be written into the tars.

    A file that is missing or broken is remarked in the statistics, and its shard's samples have no facts.
    """

    def __init__(self, *, columns: Sequence[str]) -> None:
        if not columns:
            raise UserError("data.parquet_columns=[]: name those that are wanted, or null for none")
        self.columns = list(columns)

    def facts(self, url: str, stats: SampleStats) -> Facts:
        """Raises PermissionError for a file that may not be read."""
        try:
            return self.read(parquet_of(url))
        except PermissionError:
            raise
        except FileNotFoundError:
            stats.remark(MISSING, shard=url)
        except (OSError, ValueError):
            stats.remark(BROKEN, shard=url)
        return NO_FACTS

    def read(self, url: str) -> Facts:
        """Raises OSError, or ValueError where it is no parquet file or has no keys. A column may be absent."""
        from pyarrow import ArrowException, parquet  # an optional dependency

        try:
            with open_url(url) as file, parquet.ParquetFile(file) as source:
                names = [name for name in self.columns if name in source.schema_arrow.names]
                table = source.read(columns=[KEY, *names])
            return Facts({name: table.column(name) for name in names}, table.column(KEY).to_pylist())
        except (ArrowException, KeyError) as error:
            raise UserError(f"{url!r} is no side file of img2dataset's: {error}") from error


def parquet_of(url: str) -> str:
    """The address of a shard's side file. FileNotFoundError for a shard that is not named *.tar, as of a command."""
    if url.startswith("pipe:") or not url.endswith(".tar"):
        raise FileNotFoundError(f"no side file can lie beside {url!r}")
    return f"{url.removesuffix('.tar')}.parquet"
