"""Reading img2dataset shards: tar members to samples, and a tally of what could not be used."""

import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple, cast

from PIL import Image
from webdataset.gopen import gopen
from webdataset.tariterators import base_plus_ext

from open_kandinsky.data.transforms import MAX_PIXELS, open_image
from open_kandinsky.data.urls import shard_urls

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json")
KEPT_KEYS = 20
JUDGED_FROM = 50
TAR_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error)


class Raw(NamedTuple):
    """A sample's members as they lie in the shard: extension -> bytes."""

    key: str
    url: str
    members: dict[str, bytes]


class Sample(NamedTuple):
    """A sample that can be used; `info` is its json, empty where it has none."""

    key: str
    image: Image.Image
    caption: str
    info: dict[str, Any]


@dataclass
class Reason:
    """One way to be unusable: how often, the first keys, and the shard and message of the first."""

    shard: str
    detail: str
    count: int = 0
    keys: list[str] = field(default_factory=list)

    def add(self, count: int, keys: list[str]) -> None:
        self.count += count
        self.keys = (self.keys + keys)[:KEPT_KEYS]


class Skipped:
    """A tally of samples: how many were seen, and which could not be used, why."""

    def __init__(self, *, max_bad_share: float) -> None:
        self.max_bad_share = max_bad_share
        self.seen = 0
        self.reasons: dict[str, Reason] = {}

    @property
    def bad(self) -> int:
        return sum(reason.count for reason in self.reasons.values())

    def good(self) -> None:
        """Counts a sample that can be used."""
        self.seen += 1

    def add(self, reason: str, *, key: str, shard: str, detail: str = "") -> None:
        """Counts a sample, or a tar, that cannot be used. Raises ValueError once too many of at least 50 are bad."""
        self.seen += 1
        self.reasons.setdefault(reason, Reason(shard, detail)).add(1, [key])
        if self.seen >= JUDGED_FROM:
            self.check()

    def merge(self, other: "Skipped") -> None:
        """Adds the tally of another process."""
        self.seen += other.seen
        for name, reason in other.reasons.items():
            self.reasons.setdefault(name, Reason(reason.shard, reason.detail)).add(reason.count, reason.keys)

    def check(self) -> None:
        """Raises ValueError, with the report, where the share of bad samples passes `max_bad_share`."""
        if self.bad > self.max_bad_share * self.seen:
            raise ValueError(
                f"{self.report()}\nthat is more than max_bad_share={self.max_bad_share}: mend the shards, or raise it"
            )

    def report(self) -> str:
        """One line a reason: how many, the first keys, and what was wrong with the first."""
        lines = [f"{self.bad} of {self.seen} samples cannot be used"]
        for name, reason in self.reasons.items():
            keys = ", ".join(reason.keys) + (" ..." if reason.count > len(reason.keys) else "")
            lines.append(f"  {name}: {reason.count} ({keys}); first in {reason.shard} {reason.detail}".rstrip())
        return "\n".join(lines)


def read_samples(
    urls: str | list[str], tally: Skipped, *, allow_pipe: bool = False, max_pixels: int = MAX_PIXELS
) -> Iterator[Sample]:
    """Every usable sample, in order; the others go to `tally`. Raises ValueError where too many are bad."""
    yield from decoded(raw_samples(shard_urls(urls, allow_pipe=allow_pipe), tally), tally, max_pixels)
    tally.check()


def raw_samples(shards: Iterable[str], tally: Skipped) -> Iterator[Raw]:
    """The samples of shards, nothing decoded. A tar that ends too early loses only what was cut, and is tallied."""
    for url in shards:
        raw = None
        try:
            for key, extension, data in tar_members(url):
                if raw is not None and raw.key != key:
                    yield raw
                    raw = None
                raw = raw or Raw(key, url, {})
                raw.members.setdefault(extension, data)
        except TAR_ERRORS as error:
            tally.add("truncated or unreadable tar", key=stem(url), shard=url, detail=str(error))
            raw = raw if raw is not None and whole(raw) else None
        if raw is not None:
            yield raw


def stem(url: str) -> str:
    """The shard's name without folder and ending."""
    return PurePosixPath(url).stem


def whole(raw: Raw) -> bool:
    """Whether a sample at a tar's cut has all that training needs."""
    return any(raw.members.get(name) for name in IMAGES) and any(raw.members.get(name) for name in TEXTS)


def tar_members(url: str) -> Iterator[tuple[str, str, bytes]]:
    """Key, extension and bytes of each member that belongs to a sample. Raises one of TAR_ERRORS at a cut."""
    with closing(gopen(url, "rb")) as stream, tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|*") as archive:
        while (member := archive.next()) is not None:
            path, extension = base_plus_ext(member.name)
            kind = (extension or "").lower()
            if path is not None and kind in IMAGES + TEXTS and (content := archive.extractfile(member)) is not None:
                yield f"{stem(url)}/{path}", kind, content.read()
            archive.members = []  # tarfile keeps every header it has met  # pyright: ignore[reportAttributeAccessIssue]
        check_end(archive)


def check_end(archive: tarfile.TarFile) -> None:
    """Past the first member, tarfile takes a cut or garbled header for the end; the real end is two blocks of zeros."""
    stream, block = archive.fileobj, tarfile.BLOCKSIZE
    if stream.tell() != archive.offset + block or any(stream.read(block)):
        raise tarfile.ReadError(f"no end-of-archive mark after byte {archive.offset}")


def decoded(raws: Iterable[Raw], tally: Skipped, max_pixels: int) -> Iterator[Sample]:
    """The usable samples; the others go to `tally`."""
    for raw in raws:
        try:
            sample = decode(raw, max_pixels)
        except ValueError as error:
            reason, detail = error.args
            tally.add(reason, key=raw.key, shard=raw.url, detail=detail)
        else:
            tally.good()
            yield sample


def decode(raw: Raw, max_pixels: int) -> Sample:
    """Raises ValueError(reason, detail) where a member is missing or unreadable."""
    empty = [extension for extension, data in raw.members.items() if not data]
    if empty:
        raise ValueError("zero-byte member", f".{empty[0]}")
    info = read_info(raw)
    return Sample(raw.key, read_image(raw, max_pixels), read_caption(raw, info), info)


def read_info(raw: Raw) -> dict[str, Any]:
    """The sample's json; img2dataset's is optional."""
    try:
        info = json.loads(raw.members.get("json", b"{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError("unreadable json", str(error)) from error
    if not isinstance(info, dict):
        raise ValueError("unreadable json", f"a {type(info).__name__}, expected an object")
    return info


def read_image(raw: Raw, max_pixels: int) -> Image.Image:
    """The first image member, decoded."""
    data = next((raw.members[extension] for extension in IMAGES if extension in raw.members), None)
    if data is None:
        raise ValueError("missing image", f"members: {', '.join(raw.members)}")
    try:
        return open_image(data, max_pixels=max_pixels)
    except ValueError as error:
        raise ValueError("unreadable image", str(error)) from error


def read_caption(raw: Raw, info: dict[str, Any]) -> str:
    """The txt member, or the json's caption."""
    try:
        caption = raw.members["txt"].decode("utf-8") if "txt" in raw.members else info.get("caption")
    except UnicodeDecodeError as error:
        raise ValueError("unreadable caption", str(error)) from error
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError("missing caption", f"found {caption!r}")
    return caption.strip()
