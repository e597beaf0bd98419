"""A run's folder: begun or gone on with, held by one run at a time, and what has changed since it began.

Weights that a training begins with: those of another run, or published ones.
"""

import fcntl
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from open_kandinsky import loading
from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.training.renamed import current
from open_kandinsky.weights import checkpoint as checkpoint_folder
from open_kandinsky.weights import store
from open_kandinsky.weights.source import Source

AUTO = "auto"
NOW = r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d"  # how conf/train.yaml names a folder
CHECKPOINTS, LAST = "checkpoints", "last.ckpt"

# Keys, and what is below them, that change what a run computes.
DECIDE = (
    *("seed", "dims", "data", "stage", "callbacks.ema", "callbacks.random_numbers"),
    *(f"trainer.{key}" for key in ("accelerator", "devices", "num_nodes", "strategy", "precision", "sync_batchnorm")),
    *(f"trainer.{key}" for key in ("accumulate_grad_batches", "gradient_clip_val", "limit_train_batches")),
)


def start(run_dir: Path, resume: str | None, *, is_first: bool) -> Path | None:
    """Make the run's folder, in the first process; returns the checkpoint to go on from, or None where the run begins.

    `resume` is a checkpoint, or "auto": the newest whole one of this folder, where it has one. ValueError where there
    is no such checkpoint, and where a run that begins would write over something.
    """
    if resume not in (None, AUTO):
        return existing(checkpoint_folder.standing(Path(str(resume))))
    if resume == AUTO and re.search(NOW, run_dir.name) and not run_dir.exists():
        raise UserError(
            f"resume=auto needs a run_dir that is the same each time, and {run_dir} is named by the clock: "
            "set run_dir, as in run_dir=runs/decoder"
        )
    checkpoint = newest(run_dir / CHECKPOINTS) if resume == AUTO else None
    if is_first:
        if checkpoint is None:
            refuse_to_overwrite(run_dir, resume)
        run_dir.mkdir(parents=True, exist_ok=True)
    return checkpoint


def existing(checkpoint: Path) -> Path:
    """ValueError where there is no such checkpoint, which names those that are near."""
    if not (checkpoint.is_file() or checkpoint_folder.is_folder(checkpoint)):
        folder = next((f for f in (checkpoint, checkpoint.parent) if f.is_dir()), None)
        found = ", ".join(sorted(str(p) for p in folder.rglob("*.ckpt"))[:5]) if folder else ""
        raise UserError(f"resume={checkpoint} is no checkpoint; there are: {found or 'none'}")
    return checkpoint


def refuse_to_overwrite(run_dir: Path, resume: str | None) -> None:
    """ValueError where the folder holds something, unless that is a run which ended before its first checkpoint.

    With resume=auto, a run that made steps and no checkpoint begins anew; what made none is no run.
    """
    there = sorted(path.name for path in run_dir.glob("[!.]*"))
    if not there or ("config.yaml" in there and (resume == AUTO or not has_trained(run_dir))):
        return
    if "config.yaml" not in there:
        raise UserError(f"run_dir={run_dir} holds other files and no run ({', '.join(there[:3])}): choose another")
    raise UserError(
        f"run_dir={run_dir} is a run already, and none is overwritten: go on with it by the same command and "
        "resume=auto, or choose another run_dir"
    )


def has_trained(run_dir: Path) -> bool:
    """Whether a run has made a step, by what it left: figures, checkpoints, weights, or what is not a run's."""
    left = {path.name for path in run_dir.glob("[!.]*") if not re.fullmatch(r"config(\.\d+)?\.yaml", path.name)}
    curves, checkpoints = run_dir / "metrics.csv", run_dir / CHECKPOINTS
    rows = curves.read_text(encoding="utf-8").count("\n") if curves.is_file() else 0
    return rows > 1 or any(checkpoints.glob("*")) or not left <= {"metrics.csv", CHECKPOINTS, "wandb", "tensorboard"}


def beginning(checkpoint: Path | None) -> str:
    """Where a training begins, for the person who started it."""
    if checkpoint is None:
        return "from the beginning"
    return f"going on from step {(head(checkpoint) or {}).get('global_step')} of {checkpoint}"


def ended(run_dir: Path) -> list[str]:
    """A line for each figure of a run that has ended: the last, and the best where better is known; and where more is.

    Empty where no checkpoint was kept.
    """
    found = logged(run_dir / CHECKPOINTS / LAST)
    best = found.get("best", {})
    lines = [
        f"{name} {found['figures'][name]:.4g}" + (f", best {value:.4g} at step {step}" if step is not None else "")
        for name, (value, step) in best.items()
    ]
    curves = run_dir / "metrics.csv"
    return [*lines, f"curves: {curves}"] if curves.is_file() else lines


def newest(folder: Path) -> Path | None:
    """The checkpoint that was written last, among those that are whole; None where there is none at all.

    By time and not by step: who went back to an earlier checkpoint wants what has come of that. ValueError where none
    is whole.
    """
    stood = {checkpoint_folder.standing(path) for path in [*folder.glob("[!.]*.ckpt"), folder / LAST]}
    found = sorted((p for p in stood if p.exists()), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for checkpoint in found:
        if (wrong := damage(checkpoint)) is None:
            return checkpoint
        rank_zero_warn(f"{checkpoint} is passed over: {wrong}")
    if found:
        raise UserError(f"{folder}: none of {len(found)} checkpoint(s) is whole; remove them to begin anew")
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None where it is whole. Folders are looked through when they are read."""
    if head(checkpoint) is None:
        return "no whole checkpoint"
    return store.damage(checkpoint) if checkpoint.is_file() else None


def head(checkpoint: Path) -> dict[str, Any] | None:
    """What a checkpoint says of itself, tensors left on the disk; None where it is not whole."""
    if checkpoint.is_dir() and not checkpoint_folder.is_folder(checkpoint):
        return None
    try:
        file = checkpoint / checkpoint_folder.META if checkpoint.is_dir() else checkpoint
        return torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # a damaged pickle may raise any
        return None


def logged(checkpoint: Path) -> dict[str, Any]:
    """What callbacks.history put into a checkpoint: the loggers' names of the run, and the last figures."""
    return (head(checkpoint) or {}).get("history", {"step": 0, "runs": {}, "figures": {}})


def figure(run_dir: Path, name: str) -> float:
    """The last value of a figure that a run has logged. ValueError where it logged none of that name."""
    figures = logged(run_dir / CHECKPOINTS / LAST)["figures"]
    if name not in figures:
        there = ", ".join(sorted(figures)) or "nothing, or callbacks.checkpoint or callbacks.history is off"
        raise UserError(f"objective={name}: {run_dir} logged no such figure; it logged {there}")
    return figures[name]


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """This process alone writes to the folder until the block ends. ValueError where another one does.

    The system gives back what a killed process held, on all machines that share the folder. A file system without
    locks lets everybody in.
    """
    path = run_dir / ".lock"
    with open(path, "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UserError(f"run_dir={run_dir}: another process is training there; choose another run_dir") from error
        except OSError:
            pass
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def recorded(run_dir: Path) -> dict[str, Any] | None:
    """The config of the folder's run so far; None where it begins. ValueError where the file is damaged."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        return None
    try:
        return current(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: damaged ({error}); remove it to go on without") from error


def keep_record(run_dir: Path, now: Mapping[str, Any]) -> None:
    """Before another config takes its place: warn of what changes the numbers, and keep the one of before."""
    before = recorded(run_dir)
    if before is None or not has_trained(run_dir):
        return
    differ = changes(before, now)
    if differ.keys() - {"resume"}:
        number = len(list(run_dir.glob("config.*.yaml"))) + 1
        files.write(run_dir / f"config.{number}.yaml", (run_dir / "config.yaml").read_bytes())
    if told := [text for key, text in differ.items() if decides(key)]:
        rank_zero_warn(f"{run_dir}: this run goes on with other settings than before: {', '.join(told)}")


def decides(key: str) -> bool:
    return f"{key}.".startswith(tuple(f"{decisive}." for decisive in DECIDE))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """By dotted key, "key: old -> new" of every value that differs."""
    one, other = leaves(before), leaves(now)
    keys = [*one, *(key for key in other if key not in one)]
    return {k: f"{k}: {one.get(k)} -> {other.get(k)}" for k in keys if one.get(k) != other.get(k)}


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """The values of nested mappings by dotted key; a list is a value."""
    if not isinstance(tree, Mapping):
        return {path: tree}
    below = [leaves(value, f"{path}.{key}" if path else str(key)) for key, value in tree.items()]
    return {key: value for found in below for key, value in found.items()}


log = logging.getLogger(__name__)

FIRST = "conv_in.weight"  # a U-Net's


def fill(network: nn.Module, name: str | None, source: Source) -> None:
    """Give a network, a stage's `name`, the weights that `source` has for it; any form that `load` reads.

    An input of more channels than the source's, as inpainting's, is the same function at first: the further channels
    have weights of zero, which is logged. ValueError where anything else differs in name or shape.
    """
    if name is None:
        raise UserError(
            f"init={source}: a {type(network).__name__} is no network of a system's, and has no weights there"
        )
    own, theirs = network.state_dict(), loading.network(loading.part(name, source)).state_dict()
    state = {key: widened(key, x, own[key]) if key in own else x for key, x in theirs.items()}
    refuse_others(state, own, f"init={source}")
    network.load_state_dict(state)


def widened(key: str, x: Tensor, own: Tensor) -> Tensor:
    """A first convolution's weights with zeros for input channels that it did not have."""
    more = own.shape[1] - x.shape[1] if key == FIRST and x.ndim == own.ndim else 0
    if more <= 0:
        return x
    log.warning("%s: the last %d of %d input channels are new, and start at zero", key, more, own.shape[1])
    return torch.cat([x, x.new_zeros(len(x), more, *x.shape[2:])], dim=1)


def refuse_others(state: Mapping[str, Any], own: Mapping[str, Any], told: str) -> None:
    """ValueError at weights that the network lacks, wants, or has in another shape."""
    wrong = sorted(key for key in state.keys() ^ own.keys())
    if wrong:
        raise UserError(f"{told}: {len(wrong)} weights are in one of both networks only, {wrong[0]!r} among them")
    shapes = {key: (tuple(state[key].shape), tuple(x.shape)) for key, x in own.items()}
    unlike = [f"{key} {there}, and here {here}" for key, (there, here) in shapes.items() if there != here]
    if unlike:
        raise UserError(
            f"{told}: {len(unlike)} weights have another shape: {unlike[0]}; choose the network they are of"
        )
