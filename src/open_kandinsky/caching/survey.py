"""What a folder holds, held against what it should: outputs that are fresh, stale, missing, or of nothing any more."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from open_kandinsky.caching.inputs import Input
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.caches.folder import differences, shard_files
from open_kandinsky.data.caches.shard import read_about
from open_kandinsky.data.tars.stamps import Stamp, stamps

NAMED = 20
READERS = 16


class Survey(NamedTuple):
    """By output's name. `about`: what each that is there and wanted was made from; `stale`: why."""

    about: dict[str, dict[str, Any]]
    stale: dict[str, str]
    missing: list[str]
    orphans: list[str]

    def refuse_stale(self) -> None:
        """ValueError that lists them: they are neither mixed with others nor made again over what is there."""
        if self.stale:
            lines = "\n".join(f"  {name}: {why}" for name, why in list(self.stale.items())[:NAMED])
            more = "" if len(self.stale) <= NAMED else f"\n  ... and {len(self.stale) - NAMED} more"
            raise UserError(f"stale shards: delete them, or write to another folder\n{lines}{more}")

    def told_orphans(self) -> str | None:
        """One line, where there are any."""
        if not self.orphans:
            return None
        names = ", ".join(self.orphans[:NAMED]) + (" ..." if len(self.orphans) > NAMED else "")
        return f"{len(self.orphans)} shard(s) whose inputs are not among urls, left out of the manifest: {names}"


def survey(out: Path, inputs: Sequence[Input], recipe: Mapping[str, Any]) -> Survey:
    """Reads the headers of what is there, and of inputs no more than size and version, unless these have changed."""
    there = {path.stem: path for path in shard_files(out)}
    wanted = [one for one in inputs if one.name in there]
    with ThreadPoolExecutor(READERS) as pool:
        about = list(pool.map(read_about, [there[one.name] for one in wanted]))
    found = dict(zip(wanted, zip(about, stamps([one.url for one in wanted]), strict=True), strict=True))
    why = {one.name: stale(one, *held, recipe) for one, held in found.items()}
    names = {one.name for one in inputs}
    return Survey(
        about={one.name: about for one, (about, _) in found.items()},
        stale={name: reason for name, reason in why.items() if reason},
        missing=[one.name for one in inputs if one.name not in there],
        orphans=sorted(set(there) - names),
    )


def stale(one: Input, about: Mapping[str, Any], stamp: Stamp, recipe: Mapping[str, Any]) -> str:
    """Why an output is not what it would be if it were made now; empty where it is."""
    if told := differences(about["recipe"], recipe):
        return f"made with {told}"
    was = about["input"]
    if stamp.size not in (None, was["size"]):
        return f"{one.url} had {was['size']} bytes, and has {stamp.size}"
    if stamp.version in (None, was["version"]):
        return ""
    return "" if one.digest.sha256 == was["sha256"] else f"{one.url} has other bytes than it had"
