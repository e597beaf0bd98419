"""A loader over some sources, from their beginning or from where a checkpoint says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from open_kandinsky.core.distributed import rank_and_world_size, world_size
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.order import whole_batches
from open_kandinsky.data.streaming.layout import Layout, Progress, fresh, resumed
from open_kandinsky.data.streaming.loader import StreamLoader
from open_kandinsky.data.streaming.plan import Plan
from open_kandinsky.data.streaming.protocols import Prepare, Shards
from open_kandinsky.data.streaming.stream import Recipe


class Source(NamedTuple):
    """Shards, what tells them from others, and how often they are drawn beside those of other sources."""

    shards: Shards
    identity: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """How a data module streams. `buffer`: examples that each worker holds of each source."""

    prepare: Prepare
    batch_size: int
    workers: int
    buffer: int
    seed: int
    max_bad_share: float

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"data.batch_size={self.batch_size}: at least 1")
        if self.buffer < 1:
            raise UserError(f"shuffle_buffer={self.buffer}: at least 1, which leaves a shard in its own order")

    def loader(
        self, sources: Sequence[Source], *, saved: Mapping[str, Any], trained: Callable[[], int | None]
    ) -> StreamLoader:
        """`saved`: of a checkpoint, or empty. ValueError where it is of other data, or there is not one batch."""
        samples = sum(sum(source.shards.counts) for source in sources)
        workers = usable_workers(self.workers, whole_batches(samples, self.batch_size))
        layout = Layout(world_size(), max(1, workers))
        plan, progress = self.where(sources, saved, layout)
        recipe = Recipe(
            plan=plan,
            sources=[source.shards for source in sources],
            weights=[source.weight for source in sources],
            prepare=self.prepare,
            batch_size=self.batch_size,
            max_bad_share=self.max_bad_share,
        )
        return StreamLoader(recipe=recipe, workers=workers, progress=progress, trained=trained)

    def where(self, sources: Sequence[Source], saved: Mapping[str, Any], layout: Layout) -> tuple[Plan, Progress]:
        """The order of samples, and this process's place in it."""
        plan = Plan(
            identities=[source.identity for source in sources],
            counts=[source.shards.counts for source in sources],
            seed=self.seed,
            buffer=self.buffer,
            streams=layout.streams,
            begins=[0] * len(sources),
            rest=[{} for _ in sources],
        )
        if saved:
            return resumed(dict(saved), plan, layout, rank=rank_and_world_size()[0])
        return plan, fresh(plan, layout.workers)


def usable_workers(wanted: int, batches: int) -> int:
    """A worker without a batch in each epoch would only cost memory."""
    if wanted > batches:
        rank_zero_warn(f"workers={wanted}, but only {batches} batch(es) an epoch to share out: using {batches} workers")
    return min(wanted, batches)
