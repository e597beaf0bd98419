"""Loggers that need a package of their own."""

from importlib.util import find_spec
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger


def wandb(*, project: str, name: str, save_dir: str, offline: bool, **options: Any) -> WandbLogger:
    """Weights & Biases; `options` are wandb.init's. A second run in one process, as in a sweep, is a run of its own."""
    require("wandb")
    import wandb

    wandb.finish()
    return WandbLogger(project=project, name=name, save_dir=save_dir, offline=offline, **options)


def tensorboard(*, save_dir: str, name: str, version: str, **options: Any) -> TensorBoardLogger:
    require("tensorboard")
    return TensorBoardLogger(save_dir, name=name, version=version, **options)


def require(package: str) -> None:
    """ValueError where a package is not installed."""
    if find_spec(package) is None:
        raise ValueError(f"logger={package} needs: pip install open-kandinsky[{package}]")
