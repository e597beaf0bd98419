"""Reading img2dataset shards from first to last: tar members to samples, and a tally of what could not be used."""

from collections.abc import Iterable, Iterator

from open_kandinsky.core.errors import BadSample
from open_kandinsky.data.tar.opening import shard_urls
from open_kandinsky.data.tar.reader import CUT, TAR_ERRORS, lost, samples
from open_kandinsky.data.tar.sample import Raw, Sample, decode, stem
from open_kandinsky.data.tar.stats import SampleStats
from open_kandinsky.data.transforms import MAX_PIXELS

__all__ = ["Raw", "Sample", "SampleStats", "decoded", "raw_samples", "read_samples"]


def read_samples(
    urls: str | list[str], tally: SampleStats, *, allow_pipe: bool = False, max_pixels: int = MAX_PIXELS
) -> Iterator[Sample]:
    """Every usable sample, in order; the others go to `tally`. Raises ValueError where too many are bad."""
    yield from decoded(raw_samples(shard_urls(urls, allow_pipe=allow_pipe), tally), tally, max_pixels)
    tally.check()


def raw_samples(shards: Iterable[str], tally: SampleStats) -> Iterator[Raw]:
    """The samples of shards, nothing decoded. A tar that ends too early loses only what was cut, and is tallied."""
    for url in shards:
        try:
            yield from (raw for _, raw in samples(url))
        except TAR_ERRORS as error:
            tally.add(CUT, key=stem(url), shard=url, detail=str(error), count=lost(error))


def decoded(raws: Iterable[Raw], tally: SampleStats, max_pixels: int) -> Iterator[Sample]:
    """The usable samples; the others go to `tally`."""
    for raw in raws:
        try:
            sample = decode(raw, max_pixels)
        except BadSample as bad:
            tally.add(bad.reason, key=raw.key, shard=raw.url, detail=bad.detail)
        else:
            tally.good()
            yield sample
