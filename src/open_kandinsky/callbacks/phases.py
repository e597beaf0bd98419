"""The phases of Lightning's training loop: which are open now, and the seconds spent in each."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from lightning import Trainer
from lightning.pytorch.profilers import Profiler

WAITING = "[_TrainingEpochLoop].train_dataloader_next"  # Lightning's names
SAVING = "save_checkpoint"

Clock = Callable[[], float]  # seconds, never backwards


class Phase(NamedTuple):
    name: str
    since: float


class Phases(Profiler):
    """A profiler that records the loop's phases, and passes each call on to `inner`, the profiler that was configured.

    A subclass, since Lightning reports the start and end of its actions to its profiler alone. Each costs a
    microsecond. Another thread may read `open` at any time.
    """

    def __init__(self, inner: Any, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self.inner, self.clock = inner, clock
        self._lightning_module: Any = None  # the trainer sets it
        self.open: list[Phase] = []  # outermost first
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def start(self, action_name: str) -> None:
        self.inner.start(action_name)
        self.open.append(Phase(action_name, self.clock()))

    def stop(self, action_name: str) -> None:
        self.inner.stop(action_name)
        if any(phase.name == action_name for phase in self.open):  # not one that started before this profiler was there
            while (phase := self.open.pop()).name != action_name:
                pass
            self.seconds[action_name] += self.clock() - phase.since

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        self.inner._lightning_module = self._lightning_module
        self.inner.setup(stage, local_rank, log_dir)

    def teardown(self, stage: str | None) -> None:
        self.inner.teardown(stage)

    def describe(self) -> None:
        self.inner.describe()

    def summary(self) -> str:
        return self.inner.summary()


def phases(trainer: Trainer) -> Phases:
    """The trainer's `Phases`, which the first call wraps around its profiler."""
    run: Any = trainer
    if not isinstance(run.profiler, Phases):
        run.profiler = Phases(run.profiler)
    return run.profiler


def logs_now(trainer: Trainer) -> bool:
    """Whether Lightning will pass figures of the batch that has just ended to the loggers."""
    every: int = cast(Any, trainer).log_every_n_steps
    return every > 0 and trainer.global_step % every == 0
