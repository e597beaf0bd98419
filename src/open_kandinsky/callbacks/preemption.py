"""Stops a run on a signal (preemption, Ctrl-C): it finishes its step, saves a checkpoint and can be resumed."""

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

SIGNALS = (  # sent by batch systems before they kill
    signal.SIGTERM,  # SLURM and Kubernetes
    signal.SIGUSR1,  # SLURM's --signal
    signal.SIGUSR2,  # submitit
)
APART = 1.0  # seconds; of two Ctrl-C that come faster, the second is torchrun's copy of the first


class Preempted(BaseException):
    """The run stops on a signal. It is no Exception: nothing that handles errors may catch it."""

    def __init__(self, message: str, *, by_hand: bool = False) -> None:
        super().__init__(message)
        self.by_hand = by_hand


class Preemption(Checkpoint):
    """After a signal, saves `path` and raises `Preempted` at the end of the step.

    The signal's handler only records it, since in the middle of a step weights and optimiser do not fit together.
    (Lightning's own requeueing under SLURM saves inside of the handler, and its handler of SIGTERM waits there for all
    processes.) Several processes ask each other every `every` steps, so that all of them save the same step whichever
    got the signal. A validation or a checkpoint is finished first. Ctrl-C is such a signal once the training has
    started; a second one ends it at once.

    It is a `Checkpoint`, the kind of callback that Lightning calls last: after the step of the EMA.
    """

    def __init__(self, *, path: str, every: int) -> None:
        self.path, self.every = Path(path), every
        self.received: signal.Signals | None = None
        self.step, self.steps, self.received_at = 0, 0, 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record signals until the block ends; then the handlers of before are restored."""
        before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGINT)}
        self._listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._record)

    def _record(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.received is not None and now - self.received_at > APART:
            signal.default_int_handler(number, frame)
        if number == signal.SIGINT and self.received is None and rank_zero_only.rank == 0:
            print("\nCtrl-C: this step is finished and saved; once more ends at once", file=sys.stderr, flush=True)
        if self.received is None:
            self.received, self.received_at = signal.Signals(number), now

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the handlers that Lightning has installed by now."""
        self._listen()
        signal.signal(signal.SIGINT, self._record)
        self.step = trainer.global_step
        if self._agreed(trainer):
            raise self._stop("before a step was made, nothing was saved")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:  # accumulated gradients are in no checkpoint
            return
        self.step, self.steps = trainer.global_step, self.steps + 1
        if (trainer.world_size == 1 or self.steps % self.every == 0) and self._agreed(trainer):
            trainer.save_checkpoint(self.path)
            raise self._stop(f"at step {trainer.global_step}, saved {self.path}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save where Lightning's handler got the signal first: it raises between two steps, or in a validation."""
        if isinstance(exception, SIGTERMException) and trainer.training:
            trainer.save_checkpoint(self.path)

    def _stop(self, outcome: str) -> Preempted:
        if self.received == signal.SIGINT:
            return Preempted(f"Ctrl-C {outcome}", by_hand=True)
        return Preempted(f"{self.received.name if self.received else 'another process got a signal'} {outcome}")

    def _agreed(self, trainer: Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)
