"""Loggers that need an optional package: Weights & Biases and TensorBoard."""

import sys
from importlib.util import find_spec
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from open_kandinsky.core import account
from open_kandinsky.core.errors import UserError


def wandb(*, project: str, name: str, save_dir: str, offline: bool, id: str | None, **options: Any) -> WandbLogger:
    """Weights & Biases; `options` are wandb.init's. A second run in one process, as in a sweep, is a new run there.

    `id` is that of a run to resume; if wandb does not know it, a new run gets it. UserError if this machine is not
    logged in.
    """
    require("wandb")
    finish()
    if offline:
        options["mode"] = "offline"  # WANDB_MODE, which Lightning sets, is read once a process
    elif rank_zero_only.rank == 0:
        account.check("logger=wandb", "logger.offline=true, which writes to the run's folder for `wandb sync`")
    return WandbLogger(project=project, name=name, save_dir=save_dir, offline=offline, id=id, resume="allow", **options)


def tensorboard(*, save_dir: str, name: str, version: str, purge_step: int | None, **options: Any) -> TensorBoardLogger:
    """TensorBoard; points from step `purge_step` on that the folder holds already are hidden."""
    require("tensorboard")
    return TensorBoardLogger(save_dir, name=name, version=version, purge_step=purge_step, **options)


def finish() -> None:
    """Let wandb, if this process has imported it, upload what is pending."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()


def require(package: str) -> None:
    """UserError if a package is not installed."""
    if find_spec(package) is None:
        raise UserError(f"logger={package} needs: pip install open-kandinsky[{package}]")
