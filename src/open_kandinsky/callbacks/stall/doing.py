"""What the loop does at this moment, from the phases that are open, and the lines of Python that it is in."""

import sys
import threading
import traceback
from collections.abc import Sequence
from typing import NamedTuple

from open_kandinsky.callbacks.phases import SAVING, WAITING, Phase

STEP, VALIDATION, CHECKPOINT, FIRST = "step", "validation", "checkpoint", "first step"  # each has a limit of its own
FRAMES = 12  # innermost lines of the stack

WORDS = {  # the end of a phase's name
    "training_step": "in the forward pass",
    "validation_step": "in the forward pass of a validation",
    "optimizer_step": "in an optimiser's step",
    "batch_to_device": "copying a batch to the device",
    "val_next": "waiting for a batch of the validation set",
}
TOGETHER = {  # where processes wait for each other
    "backward": "in the backward pass, which ends in all processes together",
    "run_training_epoch": "between two steps, where processes meet",
}


class Doing(NamedTuple):
    kind: str  # STEP, VALIDATION, CHECKPOINT or FIRST
    words: str
    since: float  # by the clock of the phases
    together: bool  # it may be other processes that it waits for


def doing(phases: Sequence[Phase], *, validating: bool, first: bool, now: float) -> Doing:
    """`phases`: the open ones, outermost first."""
    saving = [phase for phase in phases if phase.name == SAVING]
    waiting = [phase for phase in phases if phase.name == WAITING]
    kind = CHECKPOINT if saving else VALIDATION if validating else FIRST if first else STEP
    if saving:
        return Doing(kind, "writing a checkpoint", saving[-1].since, together=False)
    if waiting:
        return Doing(kind, "waiting for a batch", waiting[-1].since, together=False)
    if first and not phases:
        return Doing(kind, "getting ready: it opens the data", now, together=False)
    innermost = phases[-1] if phases else Phase("run_training_epoch", now)
    name = last_name(innermost.name)
    words = WORDS.get(name) or TOGETHER.get(name) or f"in {innermost.name}"
    return Doing(kind, words, innermost.since, together=name in TOGETHER)


def last_name(phase: str) -> str:
    """training_step, of "[Strategy]DDPStrategy.training_step"."""
    return phase.rpartition(".")[2]


def main_stack() -> list[str]:
    """The innermost lines of the main thread, each as file:line in function: code."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    frames = traceback.extract_stack(frame)[-FRAMES:] if frame is not None else []
    return [f"{each.filename}:{each.lineno} in {each.name}: {each.line}" for each in frames]


def in_collective(stack: Sequence[str]) -> bool:
    """Whether the main thread is in torch.distributed: it waits for other processes."""
    return any("torch/distributed/" in line for line in stack)
