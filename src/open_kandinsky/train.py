"""Train one stage.

open-kandinsky train experiment=prior_toy
open-kandinsky train experiment=decoder_toy trainer=gpu stage.optimizer.lr=3e-4 data.path=/data/latents
"""

import logging
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import instantiate
from lightning import LightningModule, Trainer, seed_everything
from omegaconf import DictConfig

from open_kandinsky import configuration
from open_kandinsky.callbacks.ema import EMA
from open_kandinsky.weights import store

make = partial(instantiate, _convert_="all")  # lists and dicts, no configs

CHATTER = (  # Lightning's, which a person who trains can do nothing about
    ".*Experiment logs directory.*exists and is not empty",  # History keeps what the logger deletes
    ".*Checkpoint directory.*exists and is not empty",
    ".*The number of training batches.*is smaller than the logging interval",
    ".*dataloader.*does not have many workers",
    ".*You defined a `validation_step` but have no `val_dataloader`",
    ".*LeafSpec.*is deprecated",
    ".*Total length of `list` across ranks is zero",  # no validation set
    ".*has been configured to not save checkpoints",
    ".*`lr_scheduler.step\\(\\)` before `optimizer.step\\(\\)`",
)


def train(cfg: DictConfig) -> Path:
    """Run one training; returns the run's folder, which holds config.yaml, checkpoints and weights.safetensors."""
    hush()
    check_devices(cfg.trainer)
    check_length(cfg.trainer)
    check_resume(cfg.resume)
    run_dir = claim(Path(cfg.run_dir), resuming=cfg.resume is not None)
    seed_everything(cfg.seed, workers=True, verbose=False)
    data, stage = make(cfg.data), make(cfg.stage)
    callbacks: dict[str, Any] = make(cfg.callbacks)
    trainer = make(cfg.trainer)(callbacks=list(callbacks.values()), logger=make(cfg.logger), default_root_dir=run_dir)
    configuration.save(cfg, run_dir / "config.yaml")
    for logger in trainer.loggers:
        logger.log_hyperparams(configuration.plain(cfg, resolve=True))
    if any(parameter.requires_grad for parameter in stage.network.parameters()):
        trainer.fit(stage, datamodule=data, ckpt_path=cfg.resume, weights_only=True)
        if trainer.checkpoint_callback is not None:
            trainer.save_checkpoint(run_dir / "checkpoints" / "last.ckpt")  # the callback's may be some steps old
    export(trainer, stage, run_dir)
    return run_dir


def hush() -> None:
    """Leave our lines and the progress bar; Lightning's warnings that matter still come."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in CHATTER:
        warnings.filterwarnings("ignore", text)


def claim(run_dir: Path, *, resuming: bool) -> Path:
    """Make the run's folder. ValueError where it holds something already, unless its run is being resumed."""
    if not resuming and run_dir.exists() and any(run_dir.iterdir()):
        last = run_dir / "checkpoints" / "last.ckpt"
        go_on = f", or go on with this one: run_dir={run_dir} resume={last}" if last.is_file() else ""
        raise ValueError(f"run_dir={run_dir} is not empty, and no run is overwritten: choose another{go_on}")
    run_dir.mkdir(parents=True, exist_ok=True)
    return run_dir


def check_devices(trainer: DictConfig) -> None:
    """ValueError where more devices are asked for than the machine has."""
    there = {"cpu": os.cpu_count() or 1, "gpu": torch.cuda.device_count(), "cuda": torch.cuda.device_count()}
    asked, has = trainer.devices, there.get(trainer.accelerator)
    if has is not None and (has == 0 or (isinstance(asked, int) and asked > has)):
        raise ValueError(
            f"trainer.devices={asked} trainer.accelerator={trainer.accelerator}: this machine has {has}; "
            "lower trainer.devices, or choose trainer=cpu"
        )


def check_length(trainer: DictConfig) -> None:
    """ValueError where nothing says when the training ends."""
    if trainer.max_steps < 0 and all(trainer.get(limit) is None for limit in ("max_epochs", "max_time")):
        raise ValueError(
            f"trainer.max_steps={trainer.max_steps}: say how long to train, as in trainer.max_steps=100000"
        )


def check_resume(resume: str | None) -> None:
    """ValueError where there is no such checkpoint."""
    if resume is not None and not Path(resume).is_file():
        folder = next((f for f in (Path(resume), Path(resume).parent) if f.is_dir()), None)
        found = ", ".join(sorted(str(p) for p in folder.rglob("*.ckpt"))[:5]) if folder else ""
        raise ValueError(f"resume={resume} is no file; checkpoints there: {found or 'none'}")


def export(trainer: Trainer, stage: LightningModule, run_dir: Path) -> None:
    """Write the network's weights, averaged where the run kept an average, for generation and later stages."""
    averages = [callback for callback in cast(Any, trainer).callbacks if isinstance(callback, EMA) and callback.average]
    for average in averages:
        average.exchange(stage)
    if trainer.is_global_zero:
        network: Any = stage.network
        store.write(run_dir / store.WEIGHTS, network.state_dict())
    for average in averages:
        average.exchange(stage)


@configuration.verb("train")
def main(cfg: DictConfig) -> None:
    print(f"trained: {train(cfg)}")


if __name__ == "__main__":
    main()
