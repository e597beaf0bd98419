"""The training loader of one process: its streams, each in a worker, and their place for the checkpoint."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from open_kandinsky.core.distributed import gather_objects, rank_and_world_size, world_size
from open_kandinsky.data.memory import Batch
from open_kandinsky.data.order import whole_batches
from open_kandinsky.data.passes import Passes
from open_kandinsky.data.streaming.counts import Counts
from open_kandinsky.data.streaming.layout import Layout, Progress, checkpoint
from open_kandinsky.data.streaming.place import StreamPlace
from open_kandinsky.data.streaming.stream import Made, Recipe, Stream
from open_kandinsky.data.streaming.workers import worked


class Streams(IterableDataset):
    """Some streams, one for each worker of a DataLoader; without workers there is one."""

    def __init__(self, recipe: Recipe, streams: Sequence[tuple[int, StreamPlace]]) -> None:
        self.recipe, self.streams = recipe, streams

    def __iter__(self) -> Iterator[Made]:
        worker = get_worker_info()
        number, begin = self.streams[worker.id if worker else 0]
        return iter(Stream(self.recipe, number=number, begin=begin))


class StreamLoader:
    """Endless batches; a pass is as many as each process can fill of an epoch. Workers live until `close`.

    What could not be used is logged for each epoch of the data when it is over, and at the end of a pass for those
    that are not. Raises ValueError where its share passes the recipe's `max_bad_share`, and where there is no batch.
    """

    def __init__(self, *, recipe: Recipe, workers: int, progress: Progress, trained: Callable[[], int | None]) -> None:
        self.recipe, self.workers = recipe, workers
        length = whole_batches(recipe.plan.samples, recipe.batch_size)
        self.passes = Passes(begin=progress, length=length, trained=trained)
        self.counts = counts_of(recipe, progress)
        self.batches: Iterator[tuple[Batch, Progress]] | None = None

    def __len__(self) -> int:
        return self.passes.length

    def __iter__(self) -> Iterator[Batch]:
        if self.batches is None:
            progress = self.passes.last()
            self.counts = counts_of(self.recipe, progress)
            self.batches = endless(in_turn(self.recipe, self.workers, progress), progress, self.counts, len(self))
        return self.passes.walk(self.batches)

    def close(self) -> None:
        """Ends the workers; the place stays, and another pass would go on there."""
        self.batches = None

    def saved(self) -> dict[str, Any]:
        """The place of all processes after the last batch that was trained with. Every process must ask for it."""
        progress = self.passes.place()
        layout = Layout(world_size(), len(progress.places))
        return checkpoint(self.recipe.plan, layout, gather_objects(progress.plain()))

    def state_dict(self) -> dict[str, Any]:
        """Empty: the data module saves `saved`, where Lightning asks every process once."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: a loader is made where it goes on."""


def endless(work: Iterable[Made], progress: Progress, counts: Counts, length: int) -> Iterator[tuple[Batch, Progress]]:
    """All batches of a process from where it is, and the progress after each; every `length` batches it reports.

    No method of the loader, which would hold itself by it: workers are to end when nobody has the loader any more.
    """
    for made in work:
        progress = after(progress, made, counts)
        if progress.drawn % length == 0:
            counts.say_so_far()
        yield made.batch, progress


def in_turn(recipe: Recipe, workers: int, progress: Progress) -> Iterable[Made]:
    """The workers give batches in turn; the one whose turn it is comes first."""
    n, rank = len(progress.places), rank_and_world_size()[0]
    turns = [(progress.drawn + at) % n for at in range(n)]
    streams = Streams(recipe, [(rank * n + turn, progress.places[turn]) for turn in turns])
    return worked(streams, workers)


def counts_of(recipe: Recipe, progress: Progress) -> Counts:
    """What was counted until there."""
    rank, processes = rank_and_world_size()
    return Counts(
        before=progress.tallies,
        streams=len(progress.places),
        max_bad_share=recipe.max_bad_share,
        whose="" if processes == 1 else f", process {rank} of {processes}",
    )


def after(progress: Progress, made: Made, counts: Counts) -> Progress:
    """One batch further."""
    places, turn = list(progress.places), progress.drawn % len(progress.places)
    places[turn] = made.after
    counts.update(turn, made.tallies)
    counts.settle([min(epochs) for epochs in zip(*(place.epochs() for place in places), strict=True)])
    return Progress(places=places, drawn=progress.drawn + 1, tallies=counts.joined())
