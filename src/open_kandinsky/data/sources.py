"""Where training samples come from: one or several sets of shards, and how often each is drawn."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.tars.index import ShardIndex
from open_kandinsky.data.tars.sample import stem
from open_kandinsky.data.tars.urls import shard_urls

Urls = str | list[str]


class Source(NamedTuple):
    """A set of shards. `weight`: how often it is drawn, beside those of the others; None: by its size."""

    urls: list[str]
    weight: float | None


def sources_of(urls: Urls | None, sources: Sequence[Mapping[str, Any]] | None, *, allow_pipe: bool) -> list[Source]:
    """What a person writes: `urls` of one source, or `sources`, each with urls and a weight.

    Raises ValueError for both or none of them, for weights that cannot be compared, and for urls that name no shard.
    """
    if (urls is None) == (not sources):
        raise UserError(f"data.urls={urls!r} and data.sources={sources!r}: give one of them, and null for the other")
    given = [{"urls": urls, "weight": None}] if sources is None else sources
    found = [Source(shard_urls(one["urls"], allow_pipe=allow_pipe), one.get("weight")) for one in given]
    weights = [source.weight for source in found]
    told = [weight for weight in weights if weight is not None]
    if len(told) not in (0, len(weights)) or any(weight <= 0 for weight in told):
        raise UserError(f"weights of the sources: {weights}; give each a weight above 0, or none (drawn by size)")
    warn_of_namesakes([url for source in found for url in source.urls])
    return found


def weights_of(sources: Sequence[Source], indexes: Sequence[ShardIndex]) -> list[float]:
    """A number for each source."""
    sizes = [float(sum(index.counts)) for index in indexes]
    return [size if one.weight is None else float(one.weight) for one, size in zip(sources, sizes, strict=True)]


def warn_of_namesakes(urls: list[str]) -> None:
    """A key names a shard without its folder."""
    name, copies = Counter(stem(url) for url in urls).most_common(1)[0]
    if copies > 1:
        rank_zero_warn(f"{copies} shards have the name {name!r}: a sample's key in the log does not tell them apart")
