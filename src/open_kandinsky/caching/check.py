"""Whether a finished cache still is what the online encoders say: of some samples, field by field."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from open_kandinsky.caching.inputs import Input
from open_kandinsky.caching.making import Maker
from open_kandinsky.caching.survey import Survey
from open_kandinsky.data.caches.rows import Rows, some_rows
from open_kandinsky.data.caches.shard import read_shard
from open_kandinsky.data.tars.tar import samples

# Of a field's largest value: what another batch size moves, and what half precision rounds away.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
HALF = 2**-10


def problems(found: Survey) -> list[str]:
    """A line for each output that is stale, missing, or has no input any more."""
    told = [f"stale: {name}: {why}" for name, why in found.stale.items()]
    told += [f"missing: {name}" for name in found.missing]
    return told + [f"orphan: {name}: its input is not among urls" for name in found.orphans]


def chosen(counts: Mapping[str, int], n: int) -> dict[str, list[int]]:
    """`n` rows spread evenly over shards of these counts: shard -> rows."""
    total = sum(counts.values())
    wanted = [at * total // min(n, total) for at in range(min(n, total))]
    starts = offsets(counts)
    rows = {name: [at - start for at in wanted if start <= at < start + counts[name]] for name, start in starts}
    return {name: those for name, those in rows.items() if those}


def offsets(counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Each shard, and how many rows the shards before it have."""
    start = 0
    for name, count in counts.items():
        yield name, start
        start += count


def differing(path: Path, one: Input, rows: Sequence[int], maker: Maker, precision: str) -> Iterator[str]:
    """A line for each field of some rows of a shard that is not as its tar's samples are encoded now."""
    held = read_shard(path)
    wanted = {held.key[row]: row for row in rows}
    for key, now in encoded(one, wanted, maker):
        row = wanted.pop(key)
        for name, told in compared(some_rows(held, row, row + 1), now, precision):
            yield f"{path.name}: {key}: {name} {told}"
    yield from (f"{path.name}: {key}: no such usable sample in {one.url}" for key in wanted)


def encoded(one: Input, keys: Mapping[str, int], maker: Maker) -> Iterator[tuple[str, Rows]]:
    """Those samples of a tar, each alone."""
    encoders, prepare = maker.loaded
    with one.at_hand() as (path, _):
        wanted = (raw for _, raw in samples(path, largest=maker.largest) if raw.key in keys)
        for raw in wanted:
            yield raw.key, encoders.rows([prepare(raw)])


def compared(held: Rows, now: Rows, precision: str) -> Iterator[tuple[str, str]]:
    """What differs: captions and counts at all, tensors by more than the tolerance."""
    if held.caption != now.caption:
        yield "caption", f"is {held.caption}, and was {now.caption}"
        return
    for name, column in now.columns.items():
        if (gap := distance(held.columns[name], column)) > allowed(column, precision):
            yield name, f"is off by {gap:.2g} of its largest value"


def distance(held: Tensor, now: Tensor) -> float:
    """The largest difference over the largest value; infinite where shapes or integers differ at all."""
    if held.shape != now.shape:
        return float("inf")
    if not now.is_floating_point():
        return 0.0 if torch.equal(held, now) else float("inf")
    gap, largest = ((x.double()).abs().max().item() for x in (held - now, now))
    return gap / largest if gap else 0.0


def allowed(column: Tensor, precision: str) -> float:
    return TOLERANCE[precision] + (HALF if column.dtype == torch.float16 else 0.0)
