"""Loggers that need a package of their own."""

import sys
from importlib.util import find_spec
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from open_kandinsky.core import account
from open_kandinsky.core.errors import UserError


def wandb(*, project: str, name: str, save_dir: str, offline: bool, id: str | None, **options: Any) -> WandbLogger:
    """Weights & Biases; `options` are wandb.init's. A second run in one process, as in a sweep, is a run of its own.

    `id` is that of a run to go on with; where wandb does not know it, a run begins that bears it. ValueError where
    this machine is not logged in.
    """
    require("wandb")
    finish()
    if offline:
        options["mode"] = "offline"  # WANDB_MODE, which Lightning sets, is read once a process
    elif rank_zero_only.rank == 0:
        account.check("logger=wandb", "logger.offline=true, which writes to the run's folder for `wandb sync`")
    return WandbLogger(project=project, name=name, save_dir=save_dir, offline=offline, id=id, resume="allow", **options)


def tensorboard(*, save_dir: str, name: str, version: str, purge_step: int | None, **options: Any) -> TensorBoardLogger:
    """TensorBoard; of what the folder holds already, points from `purge_step` on are not shown."""
    require("tensorboard")
    return TensorBoardLogger(save_dir, name=name, version=version, purge_step=purge_step, **options)


def finish() -> None:
    """Let wandb, where this process has used it, send what it still holds."""
    if (used := sys.modules.get("wandb")) is not None:
        used.finish()


def require(package: str) -> None:
    """ValueError where a package is not installed."""
    if find_spec(package) is None:
        raise UserError(f"logger={package} needs: pip install open-kandinsky[{package}]")
