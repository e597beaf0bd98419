"""Sees an autoencoder and its adversary lose their balance, says so, and stops the run if they do not find it again."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from open_kandinsky.core.errors import NumericalError

KEEP = 0.9  # of a sign's average at each look: one lucky or unlucky batch decides nothing


@runtime_checkable
class Sign(Protocol):
    """Something to look for in a logged figure, from step `after` on."""

    figure: str
    after: int
    says: str
    remedies: str

    def limit_of(self, best: float) -> tuple[bool, float]:
        """Whether the figure must stay above (or else below) a limit, and which, its best average being `best`."""
        ...


class Below:
    """A figure that must not fall below `limit`."""

    def __init__(self, *, figure: str, limit: float, after: int, says: str, remedies: str) -> None:
        self.figure, self.limit, self.after, self.says, self.remedies = figure, limit, after, says, remedies

    def limit_of(self, best: float) -> tuple[bool, float]:
        return True, self.limit


class Worse:
    """A loss that must not rise above `times` its lowest."""

    def __init__(self, *, figure: str, times: float, after: int, says: str, remedies: str) -> None:
        self.figure, self.times, self.after, self.says, self.remedies = figure, times, after, says, remedies

    def limit_of(self, best: float) -> tuple[bool, float]:
        return False, self.times * best


class Course:
    """What one sign has shown so far: a moving average, its lowest, and the step since which it is there."""

    def __init__(self) -> None:
        self.average: float | None = None
        self.best = float("inf")
        self.since: int | None = None
        self.kept = ""  # the checkpoint from before

    def follow(self, value: float) -> float:
        self.average = value if self.average is None else KEEP * self.average + (1 - KEEP) * value
        self.best = min(self.best, self.average)
        return self.average


class Collapse(Callback):
    """Looks every `every` steps at the figures that the stage logs, which are the same on all processes.

    When a sign appears it warns, and keeps the newest checkpoint in `checkpoints` by a second name. If the sign is
    there for `patience` steps without a break, NumericalError ends the run: with the step, the figure, that
    checkpoint and what to change.
    """

    def __init__(self, *, every: int, patience: int, checkpoints: str, signs: Mapping[str, Sign]) -> None:
        self.every, self.patience, self.checkpoints, self.signs = every, patience, Path(checkpoints), dict(signs)
        self.courses = {name: Course() for name in signs}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step % self.every != 0:
            return
        for name, sign in self.signs.items():
            if step > sign.after and sign.figure in trainer.callback_metrics:
                self.look(name, float(trainer.callback_metrics[sign.figure]), step, trainer.is_global_zero)

    def look(self, name: str, value: float, step: int, main: bool = True) -> None:
        sign, course = self.signs[name], self.courses[name]
        average = course.follow(value)
        above, limit = sign.limit_of(course.best)
        if (average >= limit) if above else (average <= limit):
            course.since = None
            return
        told = f"{sign.says}: {sign.figure} is {average:.3g}, and must stay {'above' if above else 'below'} {limit:.3g}"
        if course.since is None:
            course.since, course.kept = step, self.keep(name) if main else course.kept
            rank_zero_warn(f"step {step}: {told}. The run stops if it stays so for {self.patience} steps")
        elif step - course.since >= self.patience:
            raise NumericalError(
                f"step {step}: {told}; it has been so since step {course.since}. "
                f"{f'The checkpoint from before is {course.kept}. ' if course.kept else ''}Try {sign.remedies}"
            )

    def keep(self, name: str) -> str:
        """The newest checkpoint by a name that nothing writes over. Empty where there is none yet."""
        kept = self.checkpoints / f"before_{name}.ckpt"
        found = [path for path in self.checkpoints.glob("*.ckpt") if not path.name.startswith((".", "before_"))]
        if not found:
            return ""
        newest = max(found, key=lambda path: path.stat().st_mtime_ns)
        linked(newest, kept)
        return str(kept)

    def state_dict(self) -> dict[str, Any]:
        return {name: vars(course).copy() for name, course in self.courses.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, course in state_dict.items():
            if name in self.courses:
                vars(self.courses[name]).update(course)


def linked(source: Path, name: Path) -> None:
    """`source`, a file or a folder, also as `name`, in the place of what had that name; takes no room on the disk."""
    part = name.with_name(f".{name.name}.{os.getpid()}.part")
    if source.is_dir():
        shutil.copytree(source, part, copy_function=os.link)
        shutil.rmtree(name, ignore_errors=True)
    else:
        part.hardlink_to(source)
    part.replace(name)
