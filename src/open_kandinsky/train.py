"""Train one stage.

open-kandinsky train experiment=prior_toy
open-kandinsky train experiment=decoder_toy trainer=gpu stage.optimizer.lr=3e-4 data.path=/data/latents
"""

import os
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import LightningModule, Trainer, seed_everything
from omegaconf import DictConfig

from open_kandinsky import configuration
from open_kandinsky.callbacks.ema import EMA
from open_kandinsky.weights import store


def train(cfg: DictConfig) -> Path:
    """Run one training; returns the run's folder, which holds config.yaml, checkpoints and weights.safetensors."""
    check_devices(cfg.trainer)
    run_dir = claim(Path(cfg.run_dir), resuming=cfg.resume is not None)
    seed_everything(cfg.seed, workers=True, verbose=False)
    data, stage = instantiate(cfg.data), instantiate(cfg.stage)
    callbacks: dict[str, Any] = instantiate(cfg.callbacks)
    trainer = instantiate(cfg.trainer)(
        callbacks=list(callbacks.values()), logger=instantiate(cfg.logger), default_root_dir=run_dir
    )
    configuration.save(cfg, run_dir / "config.yaml")
    if any(parameter.requires_grad for parameter in stage.network.parameters()):
        trainer.fit(stage, datamodule=data, ckpt_path=cfg.resume, weights_only=True)
    export(trainer, stage, run_dir)
    return run_dir


def claim(run_dir: Path, *, resuming: bool) -> Path:
    """Make the run's folder. ValueError where it holds something already, unless its run is being resumed."""
    if not resuming and run_dir.exists() and any(run_dir.iterdir()):
        raise ValueError(
            f"run_dir={run_dir} holds a run already, and none is overwritten: choose another, "
            f"or go on with it: resume={run_dir}/checkpoints/last.ckpt"
        )
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


def export(trainer: Trainer, stage: LightningModule, run_dir: Path) -> None:
    """Write the network's weights, averaged where the run kept an average, for generation and later stages."""
    averages = [callback for callback in trainer.callbacks if isinstance(callback, EMA) and callback.average]
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
