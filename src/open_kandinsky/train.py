"""Train one stage.

open-kandinsky train experiment=prior_toy
open-kandinsky train experiment=decoder_toy trainer=gpu stage.optimizer.lr=3e-4 data.path=/data/latents
open-kandinsky train experiment=prior_toy run_dir=runs/prior resume=auto       starts, or resumes where it was killed

`train_and_report` handles how a training ends, `train` the run's folder and signals, and `fit` builds and trains.
What a step computes is in stages/, what it reads in data/, what is logged and saved along the way in callbacks/.
"""

import logging
import os
import sys
import warnings
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from open_kandinsky.callbacks.ema import EMA
from open_kandinsky.callbacks.preemption import Preempted, Preemption
from open_kandinsky.config import compose, sweep
from open_kandinsky.core import failures, files
from open_kandinsky.core.distributed import gather_unsharded
from open_kandinsky.core.errors import NumericalError, UserError
from open_kandinsky.core.secrets import hidden_arguments
from open_kandinsky.training import init_weights, launch, loggers
from open_kandinsky.training import run_dir as runs
from open_kandinsky.weights import store
from open_kandinsky.weights.build import part_of

make = partial(instantiate, _convert_="all")  # lists and dicts, no configs

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")
ALIASES = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}  # Lightning's
SILENCED = (  # Lightning's warnings about which a user can do nothing
    ".*Checkpoint directory.*exists and is not empty",
    ".*The number of training batches.*is smaller than the logging interval",
    ".*dataloader.*does not have many workers",
    ".*You defined a `validation_step` but have no `val_dataloader`",
    ".*LeafSpec.*is deprecated",
    ".*Total length of `list` across ranks is zero",  # no validation set
    ".*has been configured to not save checkpoints",
    ".*FSDP2-wrapped module.*returned a view tensor",  # nothing of ours writes into one
)


def train(cfg: DictConfig) -> Path:
    """Run one training; returns the run's folder, which holds config.yaml, checkpoints and weights.safetensors."""
    hush()
    check_devices(cfg.trainer)
    launch.check_tasks(cfg.trainer.devices, cfg.trainer.get("num_nodes", 1))
    check_length(cfg.trainer)
    check_precision(cfg.trainer, part_of(cfg))
    run_dir, is_first = Path(cfg.run_dir), launch.rank() == 0
    checkpoint = runs.start(run_dir, cfg.resume, is_first=is_first)
    with ExitStack() as stack:
        if is_first:
            stack.enter_context(runs.run_lock(run_dir))
            files.remove_leftovers(run_dir)
        callbacks: dict[str, Any] = make(cfg.callbacks)
        for callback in callbacks.values():
            if isinstance(callback, Preemption):
                stack.enter_context(callback.listening())
        fit(cfg, run_dir, checkpoint, list(callbacks.values()))
    return run_dir


def fit(cfg: DictConfig, run_dir: Path, checkpoint: Path | None, callbacks: list[Callback]) -> None:
    """Build data, stage and trainer, train from the checkpoint or from the beginning, and write the weights."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    data, stage = make(cfg.data), make(cfg.stage)
    if cfg.init is not None and checkpoint is None:
        init_weights.initialise(stage.network, part_of(cfg), cfg.init)
    trainer = make_trainer(cfg, callbacks, make_logger(cfg.logger, checkpoint))
    with launch.failing_together(trainer, run_dir), launch.known_to_children(run_dir):
        record(cfg, run_dir, checkpoint, trainer)
        if any(parameter.requires_grad for parameter in stage.network.parameters()):
            trainer.fit(stage, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            if trainer.checkpoint_callback is not None:
                trainer.save_checkpoint(run_dir / runs.CHECKPOINTS / runs.LAST)  # the callback's may be some steps old
        export(trainer, stage, run_dir)


def make_trainer(cfg: DictConfig, callbacks: list[Callback], logger: Logger | None) -> Trainer:
    """Lightning's requeueing under SLURM is off, since it saves in the middle of a step: `leave` requeues."""
    build = make(cfg.trainer)
    plugins = build.keywords.get("plugins") or []
    plugins = [*plugins] if isinstance(plugins, list) else [plugins]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return build(callbacks=callbacks, logger=logger, default_root_dir=cfg.run_dir, plugins=plugins)


def make_logger(cfg: DictConfig | None, checkpoint: Path | None) -> Logger | None:
    """A resumed training continues the logger's own run; steps that it repeats are not shown twice."""
    if cfg is None or checkpoint is None:
        return make(cfg)
    history = runs.history(checkpoint)
    known = {"id": history["runs"].get("WandbLogger"), "purge_step": history["step"]}
    return make(cfg, **{key: value for key, value in known.items() if key in cfg and cfg[key] is None})


def record(cfg: DictConfig, run_dir: Path, checkpoint: Path | None, trainer: Trainer) -> None:
    """Write config.yaml, after a comparison with the one before, and give the config to the loggers."""
    values = compose.record(cfg)
    if trainer.is_global_zero:
        runs.compare_config(run_dir, values)
        compose.save(cfg, run_dir / "config.yaml")
        print(f"training in {run_dir}, {runs.describe_start(checkpoint)}", flush=True)
    with hidden_arguments():
        for logger in trainer.loggers:
            logger.log_hyperparams(values)


def export(trainer: Trainer, stage: LightningModule, run_dir: Path) -> None:
    """Write the network's weights, by EMA if the run has it, to weights.safetensors."""
    averages = [callback for callback in cast(Any, trainer).callbacks if isinstance(callback, EMA) and callback.average]
    for average in averages:
        average.exchange(stage)
    network: Any = stage.network
    state = gather_unsharded(network.state_dict())
    if trainer.is_global_zero:
        store.write(run_dir / store.WEIGHTS, state)
    for average in averages:
        average.exchange(stage)


def leave(stop: Preempted, cfg: DictConfig) -> NoReturn:
    """Print how to resume, have SLURM start the job again, and exit with 75, or with 130 after Ctrl-C."""
    loggers.finish()
    if launch.rank() == 0:
        go_on = f"go on with the same command and run_dir={cfg.run_dir} resume=auto"
        print(f"open-kandinsky train: {stop}; {go_on}", file=sys.stderr, flush=True)
        if not stop.by_hand and (job := launch.job()) and cfg.resume == runs.AUTO:
            print(f"open-kandinsky train: {launch.requeue(job)}", file=sys.stderr, flush=True)
    raise SystemExit(failures.INTERRUPTED if stop.by_hand else failures.PREEMPTED)


def hush() -> None:
    """Silence Lightning's information and `SILENCED` warnings."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in SILENCED:
        warnings.filterwarnings("ignore", text)


def check_devices(trainer: DictConfig) -> None:
    """UserError for more devices than the machine has, or for several without a strategy."""
    available = {"cpu": os.cpu_count() or 1, "gpu": torch.cuda.device_count(), "cuda": torch.cuda.device_count()}
    devices, has = trainer.devices, available.get(trainer.accelerator)
    if has is not None and (has == 0 or (isinstance(devices, int) and devices > has)):
        raise UserError(
            f"trainer.devices={devices} trainer.accelerator={trainer.accelerator}: this machine has {has}; "
            "lower trainer.devices, or choose trainer=cpu"
        )
    if trainer.strategy == "auto" and (trainer.get("num_nodes", 1) > 1 or devices not in (1, "auto")):
        raise UserError(
            f"trainer.devices={devices} with strategy=single: choose strategy=ddp, or strategy=fsdp for sharded "
            "weights; trainer=node takes all GPUs of this machine"
        )


def check_length(trainer: DictConfig) -> None:
    """UserError for a training without an end."""
    if trainer.max_steps < 0 and all(trainer.get(limit) is None for limit in ("max_epochs", "max_time")):
        raise UserError(f"trainer.max_steps={trainer.max_steps}: say how long to train, as in trainer.max_steps=100000")


def check_precision(trainer: DictConfig, part: str | None) -> None:
    """UserError for a precision that is unknown, or in which the part would be computed wrongly."""
    precision, typed = str(trainer.precision), f"trainer.precision={trainer.precision}"
    precision = ALIASES.get(precision, precision)
    if trainer.precision is None or precision in PRECISIONS[:3]:
        return
    if precision.endswith("-true"):
        raise UserError(
            f"{typed}: it would round the noise schedule's table, in which the first steps differ by less than it can "
            "tell; choose bf16-mixed, whose weights and tables are whole, or 32-true"
        )
    if precision not in PRECISIONS:
        raise UserError(f"{typed}: not known here; choose one of {', '.join(PRECISIONS)}")
    if part == "movq":
        raise UserError(
            f"{typed} with stage=movq: gradients are clipped by value while they are scaled, which puts nearly all of "
            "them at the bound; choose bf16-mixed or 32-true"
        )
    if trainer.accelerator == "cpu":
        raise UserError(f"{typed} on a CPU: float16 is for GPUs; choose bf16-mixed or 32-true")


def train_and_report(cfg: DictConfig) -> float | None:
    """Train, print the outcome, and return the figure `objective`, by which a sweep compares runs; None without one.

    A training that diverges in a sweep has none, and the sweep goes on.
    """
    try:
        run_dir = train(cfg)
    except Preempted as stop:
        leave(stop, cfg)
    except NumericalError as error:
        if not (cfg.objective and sweep.is_sweep()):
            raise
        print(f"open-kandinsky train: {error}", file=sys.stderr, flush=True)
        return None
    if launch.rank() == 0:
        print("\n  ".join([f"trained: {run_dir}", *runs.summary(run_dir)]))
    return runs.figure(run_dir, cfg.objective) if cfg.objective else None


@compose.command("train", first=lambda cfg: launch.agree(cfg.trainer.get("num_nodes", 1)))
def main(cfg: DictConfig) -> float | None:
    return train_and_report(cfg)


if __name__ == "__main__":
    main()
