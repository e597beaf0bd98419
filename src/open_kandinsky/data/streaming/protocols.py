"""What a stream asks of its sources, and of what makes batches of them."""

import random
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from open_kandinsky.data.memory import Batch
from open_kandinsky.data.tars.tally import Skipped


@runtime_checkable
class Example(Protocol):
    """An undecoded sample. `key` names it in the log, `url` is its shard."""

    @property
    def key(self) -> str: ...

    @property
    def url(self) -> str: ...


@runtime_checkable
class Shards(Protocol):
    """Shards of one source. `counts`: how many samples each holds, as the index says."""

    @property
    def counts(self) -> Sequence[int]: ...

    def read(self, shard: int, wanted: Sequence[int], tally: Skipped) -> Iterator[tuple[int, Any]]:
        """Position in the shard and undecoded example, for those of `wanted` (ascending) that can be read.

        Those that cannot are added to `tally` before what follows them is given, and once each.
        """
        ...


@runtime_checkable
class Prepare(Protocol):
    """Makes rows of examples. Both raise BadSample for one that cannot be used."""

    def bucket(self, example: Any, /) -> Hashable:
        """What a batch must have in common, told without decoding: the size of its images."""
        ...

    def row(self, example: Any, bucket: Hashable, draws: random.Random, /) -> Batch:
        """One row of a batch, decoded. `draws`: the only random numbers that it may use."""
        ...
