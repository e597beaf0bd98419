"""A run that is told to go: it ends its step, saves and leaves, and can be gone on with."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

# What batch systems send before they kill: SLURM and Kubernetes the first, SLURM's --signal the second, submitit the
# third.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
APART = 1.0  # seconds between two Ctrl-C: torchrun sends on what the terminal has sent already


class Preempted(BaseException):
    """The run was told to go. It is no error, and nothing that mends errors may catch it."""

    def __init__(self, told: str, *, by_hand: bool = False) -> None:
        super().__init__(told)
        self.by_hand = by_hand


class Preemption(Checkpoint):
    """Saves `path` and raises `Preempted` at the end of the step in which a signal is found to have come.

    A signal is only noted when it comes: in the middle of a step nothing is whole. (Lightning's own requeue for SLURM
    writes its checkpoint inside of the signal's handler, and its handler of SIGTERM waits there for all processes.)
    Several processes ask each other every `every` steps, so that all of them save the same step whoever got the
    signal. During a validation or a checkpoint the signal waits for its end. Ctrl-C is such a signal once the training
    has begun; a second one ends it at once.

    It is a `Checkpoint`, Lightning's name for callbacks that it calls last: the moving average has had its step by
    then.
    """

    def __init__(self, *, path: str, every: int) -> None:
        self.path, self.every = Path(path), every
        self.told: signal.Signals | None = None
        self.step, self.steps, self.since = 0, 0, 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Until the block ends, the signals are noted here; whatever listened before then listens again."""
        before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGINT)}
        self._listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.told is not None and now - self.since > APART:
            signal.default_int_handler(number, frame)
        if number == signal.SIGINT and self.told is None and rank_zero_only.rank == 0:
            print("\nCtrl-C: this step is finished and saved; once more ends at once", file=sys.stderr, flush=True)
        if self.told is None:
            self.told, self.since = signal.Signals(number), now

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """By now Lightning has put handlers of its own in place."""
        self._listen()
        signal.signal(signal.SIGINT, self._note)
        self.step = trainer.global_step
        if self._agreed(trainer):
            raise self._stop("before a step was made, nothing was saved")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:  # gradients are still being accumulated, and no checkpoint holds them
            return
        self.step, self.steps = trainer.global_step, self.steps + 1
        if (trainer.world_size == 1 or self.steps % self.every == 0) and self._agreed(trainer):
            self._save(trainer)
            raise self._stop(f"at step {trainer.global_step}, saved {self.path}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning may have seen the signal first; it raises between two steps, or in a validation."""
        if isinstance(exception, SIGTERMException) and trainer.training:
            self._save(trainer)

    def _stop(self, told: str) -> Preempted:
        if self.told == signal.SIGINT:
            return Preempted(f"Ctrl-C {told}", by_hand=True)
        return Preempted(f"{self.told.name if self.told else 'another process got a signal'} {told}")

    def _agreed(self, trainer: Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self.told is not None, all=False)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path)
