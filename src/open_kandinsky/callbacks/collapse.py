"""Detects the collapse of adversarial training from logged figures: warns first, then stops the run."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from open_kandinsky.core.errors import NumericalError

DECAY = 0.9  # of a figure's moving average, so that no single batch decides


@runtime_checkable
class Sign(Protocol):
    """A sign of collapse in a logged figure, looked for after step `after`; `says` and `remedies` are for the user."""

    figure: str
    after: int
    says: str
    remedies: str

    def limit_of(self, best: float) -> tuple[bool, float]:
        """(whether the figure must stay above it or else below it, the limit), given the lowest average `best`."""
        ...


class Below:
    """The sign that a figure falls below `limit`."""

    def __init__(self, *, figure: str, limit: float, after: int, says: str, remedies: str) -> None:
        self.figure, self.limit, self.after, self.says, self.remedies = figure, limit, after, says, remedies

    def limit_of(self, best: float) -> tuple[bool, float]:
        return True, self.limit


class Worse:
    """The sign that a loss rises above `times` its lowest average."""

    def __init__(self, *, figure: str, times: float, after: int, says: str, remedies: str) -> None:
        self.figure, self.times, self.after, self.says, self.remedies = figure, times, after, says, remedies

    def limit_of(self, best: float) -> tuple[bool, float]:
        return False, self.times * best


class SignState:
    """The moving average of a sign's figure, its lowest value, and the step since which the sign is there."""

    def __init__(self) -> None:
        self.average: float | None = None
        self.best = float("inf")
        self.since: int | None = None
        self.kept = ""  # path of the last checkpoint from before

    def update(self, value: float) -> float:
        self.average = value if self.average is None else DECAY * self.average + (1 - DECAY) * value
        self.best = min(self.best, self.average)
        return self.average


class Collapse(Callback):
    """Checks every `every` steps the figures that the stage logs, which are equal on all processes.

    When a sign appears it warns, and links the newest checkpoint in `checkpoints` as before_SIGN.ckpt, which nothing
    overwrites. If the sign stays for `patience` steps, NumericalError ends the run: with the step, the figure, that
    checkpoint and what to change.
    """

    def __init__(self, *, every: int, patience: int, checkpoints: str, signs: Mapping[str, Sign]) -> None:
        self.every, self.patience, self.checkpoints, self.signs = every, patience, Path(checkpoints), dict(signs)
        self.states = {name: SignState() for name in signs}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step % self.every != 0:
            return
        for name, sign in self.signs.items():
            if step > sign.after and sign.figure in trainer.callback_metrics:
                self.check(name, float(trainer.callback_metrics[sign.figure]), step, trainer.is_global_zero)

    def check(self, name: str, value: float, step: int, is_first: bool = True) -> None:
        sign, state = self.signs[name], self.states[name]
        average = state.update(value)
        above, limit = sign.limit_of(state.best)
        if (average >= limit) if above else (average <= limit):
            state.since = None
            return
        text = f"{sign.says}: {sign.figure} is {average:.3g}, and must stay {'above' if above else 'below'} {limit:.3g}"
        if state.since is None:
            state.since, state.kept = step, self.keep(name) if is_first else state.kept
            rank_zero_warn(f"step {step}: {text}. The run stops if it stays so for {self.patience} steps")
        elif step - state.since >= self.patience:
            raise NumericalError(
                f"step {step}: {text}; it has been so since step {state.since}. "
                f"{f'The checkpoint from before is {state.kept}. ' if state.kept else ''}Try {sign.remedies}"
            )

    def keep(self, name: str) -> str:
        """Link the newest checkpoint under a name that nothing overwrites; "" if there is none yet."""
        kept = self.checkpoints / f"before_{name}.ckpt"
        paths = [path for path in self.checkpoints.glob("*.ckpt") if not path.name.startswith((".", "before_"))]
        if not paths:
            return ""
        link(max(paths, key=lambda path: path.stat().st_mtime_ns), kept)
        return str(kept)

    def state_dict(self) -> dict[str, Any]:
        return {name: vars(state).copy() for name, state in self.states.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in state_dict.keys() & self.states.keys():
            vars(self.states[name]).update(state_dict[name])


def link(source: Path, name: Path) -> None:
    """Hard-link a file, or the files of a folder, as `name`, replacing what had that name."""
    part = name.with_name(f".{name.name}.{os.getpid()}.part")
    if source.is_dir():
        shutil.copytree(source, part, copy_function=os.link)
        shutil.rmtree(name, ignore_errors=True)
    else:
        part.hardlink_to(source)
    part.replace(name)
