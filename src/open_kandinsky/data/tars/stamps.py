"""What tells one state of a shard from another without opening it."""

import os
from collections import defaultdict
from typing import Any, NamedTuple

from open_kandinsky.data.tars.opening import REMOTE, TIMEOUT, asked, filesystem, patiently

# the first of these that a file system tells; each has its own
VERSIONS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")


class Stamp(NamedTuple):
    """Bytes, and what the store calls the file's version; None where it does not say."""

    size: int | None
    version: str | None


UNKNOWN = Stamp(None, None)


def stamps(urls: list[str]) -> list[Stamp]:
    """Of each address: one listing a folder. Commands and web servers have none to give. Raises OSError."""
    folders: dict[str, list[str]] = defaultdict(list)
    for url in urls:
        folders[folder_of(url)].append(url)
    found = {url: stamp for folder, held in folders.items() for url, stamp in folder_stamps(folder, held).items()}
    return [found[url] for url in urls]


def folder_of(url: str) -> str:
    """The address without the file's name."""
    return url.rpartition("/")[0]


def folder_stamps(folder: str, urls: list[str]) -> dict[str, Stamp]:
    """Of the files of one folder."""
    if urls[0].startswith(("pipe:", "http://", "https://")):
        return dict.fromkeys(urls, UNKNOWN)
    if REMOTE.match(urls[0]):
        return listed_stamps(folder, urls)
    return {url: Stamp((found := os.stat(url)).st_size, str(found.st_mtime_ns)) for url in urls}


def listed_stamps(folder: str, urls: list[str]) -> dict[str, Stamp]:
    """From a listing; what is not in it is unknown, and is missed when it is opened."""
    system, path = filesystem(f"{folder}/")
    listing = patiently(lambda: asked(system, "ls", path, detail=True, timeout=TIMEOUT * 10), folder)
    found = {info["name"].rpartition("/")[2]: stamp_of(info) for info in listing}
    return {url: found.get(url.rpartition("/")[2], UNKNOWN) for url in urls}


def stamp_of(info: dict[str, Any]) -> Stamp:
    """From what a file system says of a file."""
    version = next((info[name] for name in VERSIONS if info.get(name)), None)
    return Stamp(info.get("size"), None if version is None else str(version))
