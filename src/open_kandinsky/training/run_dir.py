"""The folder of a run: started or resumed, locked against a second run, its config recorded, its figures read.

It holds config.yaml (and config.N.yaml of before a change), metrics.csv, checkpoints/ and, at the end,
weights.safetensors.
"""

import fcntl
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.training.renamed import current
from open_kandinsky.weights import checkpoint as checkpoint_folder
from open_kandinsky.weights import store

AUTO = "auto"
CLOCK = r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d"  # how conf/train.yaml names a folder
CHECKPOINTS, LAST = "checkpoints", "last.ckpt"
CONFIG, CURVES = "config.yaml", "metrics.csv"

# Keys of a config that change the numbers of a run, with all keys below them.
NUMERICAL = (
    *("seed", "dims", "data", "stage", "callbacks.ema", "callbacks.random_numbers"),
    *(f"trainer.{key}" for key in ("accelerator", "devices", "num_nodes", "strategy", "precision", "sync_batchnorm")),
    *(f"trainer.{key}" for key in ("accumulate_grad_batches", "gradient_clip_val", "limit_train_batches")),
)


def start(run_dir: Path, resume: str | None, *, is_first: bool) -> Path | None:
    """Make the run's folder, in the first process; returns the checkpoint to resume from, or None for a new run.

    `resume` is a checkpoint, or "auto": the newest whole one of this folder, if it has one. UserError if there is no
    such checkpoint, or if a new run would write over something.
    """
    if resume not in (None, AUTO):
        return require_checkpoint(checkpoint_folder.standing(Path(str(resume))))
    if resume == AUTO and re.search(CLOCK, run_dir.name) and not run_dir.exists():
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


def require_checkpoint(checkpoint: Path) -> Path:
    """The same path; UserError, with the checkpoints nearby, if it is no checkpoint."""
    if not (checkpoint.is_file() or checkpoint_folder.is_folder(checkpoint)):
        folder = next((f for f in (checkpoint, checkpoint.parent) if f.is_dir()), None)
        nearby = ", ".join(sorted(str(p) for p in folder.rglob("*.ckpt"))[:5]) if folder else ""
        raise UserError(f"resume={checkpoint} is no checkpoint; there are: {nearby or 'none'}")
    return checkpoint


def refuse_to_overwrite(run_dir: Path, resume: str | None) -> None:
    """UserError if the folder holds other files, or a run that has trained.

    With resume=auto, a run that was killed before its first checkpoint starts anew.
    """
    names = sorted(path.name for path in run_dir.glob("[!.]*"))
    if not names or (CONFIG in names and (resume == AUTO or not has_trained(run_dir))):
        return
    if CONFIG not in names:
        raise UserError(f"run_dir={run_dir} holds other files and no run ({', '.join(names[:3])}): choose another")
    raise UserError(
        f"run_dir={run_dir} is a run already, and none is overwritten: go on with it by the same command and "
        "resume=auto, or choose another run_dir"
    )


def has_trained(run_dir: Path) -> bool:
    """Whether a run has made a step: rows of figures, checkpoints, weights, or any file that a start does not write."""
    names = {path.name for path in run_dir.glob("[!.]*") if not re.fullmatch(r"config(\.\d+)?\.yaml", path.name)}
    curves, checkpoints = run_dir / CURVES, run_dir / CHECKPOINTS
    rows = curves.read_text(encoding="utf-8").count("\n") if curves.is_file() else 0
    return rows > 1 or any(checkpoints.glob("*")) or not names <= {CURVES, CHECKPOINTS, "wandb", "tensorboard"}


def describe_start(checkpoint: Path | None) -> str:
    if checkpoint is None:
        return "from the beginning"
    return f"going on from step {(metadata(checkpoint) or {}).get('global_step')} of {checkpoint}"


def summary(run_dir: Path) -> list[str]:
    """Lines about a run that has ended: each figure's last value and, of a validation, its best; where the curves are.

    There are no figures if no checkpoint was kept.
    """
    kept = history(run_dir / CHECKPOINTS / LAST)
    lines = [
        f"{name} {kept['figures'][name]:.4g}" + (f", best {value:.4g} at step {step}" if step is not None else "")
        for name, (value, step) in kept.get("best", {}).items()
    ]
    curves = run_dir / CURVES
    return [*lines, f"curves: {curves}"] if curves.is_file() else lines


def newest(folder: Path) -> Path | None:
    """The whole checkpoint that was written last; None if there is no checkpoint, UserError if none is whole.

    By time and not by step: after a return to an earlier checkpoint, the newer steps are of the abandoned course.
    """
    paths = {checkpoint_folder.standing(path) for path in [*folder.glob("[!.]*.ckpt"), folder / LAST]}
    by_time = sorted((p for p in paths if p.exists()), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for checkpoint in by_time:
        wrong = "no whole checkpoint" if metadata(checkpoint) is None else None
        if wrong is None and checkpoint.is_file():  # a folder is checked when it is loaded, by all processes
            wrong = store.damage(checkpoint)
        if wrong is None:
            return checkpoint
        rank_zero_warn(f"{checkpoint} is passed over: {wrong}")
    if by_time:
        raise UserError(f"{folder}: none of {len(by_time)} checkpoint(s) is whole; remove them to begin anew")
    return None


def metadata(checkpoint: Path) -> dict[str, Any] | None:
    """A checkpoint's dictionary, with tensors left on the disk; None if the checkpoint is not whole."""
    if checkpoint.is_dir() and not checkpoint_folder.is_folder(checkpoint):
        return None
    try:
        file = checkpoint / checkpoint_folder.META if checkpoint.is_dir() else checkpoint
        return torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # a damaged pickle may raise any
        return None


def history(checkpoint: Path) -> dict[str, Any]:
    """The entry of callbacks/history.py in a checkpoint: the loggers' names of the run, its last and best figures."""
    return (metadata(checkpoint) or {}).get("history", {"step": 0, "runs": {}, "figures": {}})


def figure(run_dir: Path, name: str) -> float:
    """The last value of a figure that a run has logged. UserError, with all names, if it logged none of that name."""
    figures = history(run_dir / CHECKPOINTS / LAST)["figures"]
    if name not in figures:
        names = ", ".join(sorted(figures)) or "nothing, or callbacks.checkpoint or callbacks.history is off"
        raise UserError(f"objective={name}: {run_dir} logged no such figure; it logged {names}")
    return figures[name]


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold the folder's lock until the block ends. UserError if another process trains there.

    The system releases a killed process's lock, on all machines that share the folder. On a file system without locks
    nothing is locked.
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


def last_config(run_dir: Path) -> dict[str, Any] | None:
    """The config of the folder's run so far; None for a new run. UserError if the file is damaged."""
    path = run_dir / CONFIG
    if not path.is_file():
        return None
    try:
        return current(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: damaged ({error}); remove it to go on without") from error


def compare_config(run_dir: Path, now: Mapping[str, Any]) -> None:
    """On resuming with other settings: keep the old config as config.N.yaml, and warn of changes of the numbers."""
    before = last_config(run_dir)
    if before is None or not has_trained(run_dir):
        return
    changed = changes(before, now)
    if changed.keys() - {"resume"}:
        number = len(list(run_dir.glob("config.*.yaml"))) + 1
        files.write(run_dir / f"config.{number}.yaml", (run_dir / CONFIG).read_bytes())
    numerical = tuple(f"{key}." for key in NUMERICAL)
    if texts := [text for key, text in changed.items() if f"{key}.".startswith(numerical)]:
        rank_zero_warn(f"{run_dir}: this run goes on with other settings than before: {', '.join(texts)}")


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """ "key: old -> new" of every value that differs, by dotted key."""
    one, other = leaves(before), leaves(now)
    keys = [*one, *(key for key in other if key not in one)]
    return {k: f"{k}: {one.get(k)} -> {other.get(k)}" for k in keys if one.get(k) != other.get(k)}


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """The values of nested mappings by dotted key; a list is a value."""
    if not isinstance(tree, Mapping):
        return {path: tree}
    below = [leaves(value, f"{path}.{key}" if path else str(key)) for key, value in tree.items()]
    return {key: value for each in below for key, value in each.items()}
