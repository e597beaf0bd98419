"""Train one stage.

open-kandinsky train experiment=prior_toy
open-kandinsky train experiment=decoder_toy trainer=gpu stage.optimizer.lr=3e-4 data.path=/data/latents
open-kandinsky train experiment=prior_toy run_dir=runs/prior resume=auto       begins, or goes on where it was killed
"""

import logging
import os
import sys
import warnings
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

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
from open_kandinsky.training import launch, loggers
from open_kandinsky.training import run_dir as runs
from open_kandinsky.weights import store
from open_kandinsky.weights.build import part_of

make = partial(instantiate, _convert_="all")  # lists and dicts, no configs

CHATTER = (  # Lightning's, which a person who trains can do nothing about
    ".*Checkpoint directory.*exists and is not empty",
    ".*The number of training batches.*is smaller than the logging interval",
    ".*dataloader.*does not have many workers",
    ".*You defined a `validation_step` but have no `val_dataloader`",
    ".*LeafSpec.*is deprecated",
    ".*Total length of `list` across ranks is zero",  # no validation set
    ".*has been configured to not save checkpoints",
    ".*FSDP2-wrapped module.*returned a view tensor",  # nothing of ours writes into one
)


PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")
ALIASES = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}  # Lightning's
TRUE_HALVES = "it would round the noise schedule's table, in which the first steps differ by less than it can tell"


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
    """Train from the checkpoint, or from the beginning, to the end; and write the weights."""
    seed_everything(cfg.seed, workers=True, verbose=False)
    data, stage = make(cfg.data), make(cfg.stage)
    if cfg.init is not None and checkpoint is None:
        runs.fill(stage.network, part_of(cfg), cfg.init)
    trainer = make_trainer(cfg, callbacks, make_logger(cfg.logger, checkpoint))
    with launch.together(trainer, run_dir), launch.known_to_children(run_dir):
        run(trainer, stage, data, cfg, checkpoint)


def run(trainer: Trainer, stage: Any, data: Any, cfg: DictConfig, checkpoint: Path | None) -> None:
    """What every process does, from the config that the first one writes to the weights."""
    run_dir = Path(cfg.run_dir)
    record = compose.record(cfg)
    if trainer.is_global_zero:
        runs.keep_record(run_dir, record)
        compose.save(cfg, run_dir / "config.yaml")
        print(f"training in {run_dir}, {runs.beginning(checkpoint)}", flush=True)
    with hidden_arguments():
        for logger in trainer.loggers:
            logger.log_hyperparams(record)
    if any(parameter.requires_grad for parameter in stage.network.parameters()):
        trainer.fit(stage, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if trainer.checkpoint_callback is not None:
            trainer.save_checkpoint(run_dir / runs.CHECKPOINTS / runs.LAST)  # the callback's may be some steps old
    export(trainer, stage, run_dir)


def make_trainer(cfg: DictConfig, callbacks: list[Callback], logger: Logger | None) -> Trainer:
    """Lightning's own requeue for SLURM is off: it saves in the middle of a step. `Preemption` does what it would."""
    made = make(cfg.trainer)
    given = made.keywords.get("plugins") or []
    plugins = [*(given if isinstance(given, list) else [given])]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return made(callbacks=callbacks, logger=logger, default_root_dir=cfg.run_dir, plugins=plugins)


def make_logger(cfg: DictConfig | None, checkpoint: Path | None) -> Logger | None:
    """A resumed run goes on in the logger's own run, and what it does again is not shown twice."""
    if cfg is None or checkpoint is None:
        return make(cfg)
    logged = runs.logged(checkpoint)
    known = {"id": logged["runs"].get("WandbLogger"), "purge_step": logged["step"]}
    return make(cfg, **{key: value for key, value in known.items() if key in cfg and cfg[key] is None})


def hush() -> None:
    """Leave our lines and the progress bar; Lightning's warnings that matter still come."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in CHATTER:
        warnings.filterwarnings("ignore", text)


def check_devices(trainer: DictConfig) -> None:
    """ValueError where more devices are asked for than the machine has, or several without a strategy for them."""
    there = {"cpu": os.cpu_count() or 1, "gpu": torch.cuda.device_count(), "cuda": torch.cuda.device_count()}
    asked, has = trainer.devices, there.get(trainer.accelerator)
    if has is not None and (has == 0 or (isinstance(asked, int) and asked > has)):
        raise UserError(
            f"trainer.devices={asked} trainer.accelerator={trainer.accelerator}: this machine has {has}; "
            "lower trainer.devices, or choose trainer=cpu"
        )
    if trainer.strategy == "auto" and (trainer.get("num_nodes", 1) > 1 or asked not in (1, "auto")):
        raise UserError(
            f"trainer.devices={asked} with strategy=single: choose strategy=ddp, or strategy=fsdp for sharded weights; "
            "trainer=node takes all GPUs of this machine"
        )


def check_length(trainer: DictConfig) -> None:
    """ValueError where nothing says when the training ends."""
    if trainer.max_steps < 0 and all(trainer.get(limit) is None for limit in ("max_epochs", "max_time")):
        raise UserError(f"trainer.max_steps={trainer.max_steps}: say how long to train, as in trainer.max_steps=100000")


def check_precision(trainer: DictConfig, part: str | None) -> None:
    """ValueError for a precision in which something would be computed wrongly, and for one that is not known here."""
    wanted = str(trainer.precision)
    if trainer.precision is None or (precision := ALIASES.get(wanted, wanted)) in PRECISIONS[:3]:
        return
    told = f"trainer.precision={wanted}"
    if precision.endswith("-true"):
        raise UserError(f"{told}: {TRUE_HALVES}; choose bf16-mixed, whose weights and tables are whole, or 32-true")
    if precision not in PRECISIONS:
        raise UserError(f"{told}: not known here; choose one of {', '.join(PRECISIONS)}")
    if part == "movq":
        raise UserError(
            f"{told} with stage=movq: gradients are clipped by value while they are scaled, which puts nearly all of "
            "them at the bound; choose bf16-mixed or 32-true"
        )
    if trainer.accelerator == "cpu":
        raise UserError(f"{told} on a CPU: float16 is for GPUs; choose bf16-mixed or 32-true")


def export(trainer: Trainer, stage: LightningModule, run_dir: Path) -> None:
    """Write the network's weights, averaged where the run kept an average, for generation and later stages."""
    averages = [callback for callback in cast(Any, trainer).callbacks if isinstance(callback, EMA) and callback.average]
    for average in averages:
        average.exchange(stage)
    network: Any = stage.network
    state = gather_unsharded(network.state_dict())
    if trainer.is_global_zero:
        store.write(run_dir / store.WEIGHTS, state)
    for average in averages:
        average.exchange(stage)


def leave(stop: Preempted, cfg: DictConfig) -> None:
    """Say what was saved and how to go on, have SLURM start the job again, and exit: 75, or 130 by Ctrl-C."""
    loggers.finish()
    if launch.rank() == 0:
        go_on = f"go on with the same command and run_dir={cfg.run_dir} resume=auto"
        print(f"open-kandinsky train: {stop}; {go_on}", file=sys.stderr, flush=True)
        if not stop.by_hand and (job := launch.job()) and cfg.resume == runs.AUTO:
            print(f"open-kandinsky train: {launch.requeue(job)}", file=sys.stderr, flush=True)
    raise SystemExit(failures.INTERRUPTED if stop.by_hand else failures.PREEMPTED)


def trained(cfg: DictConfig) -> float | None:
    """Train, say so, and return the figure that a sweep compares runs by; None where there is none.

    In a sweep, a training that diverged has none, and the sweep goes on.
    """
    try:
        run_dir = train(cfg)
        if launch.rank() == 0:
            print("\n  ".join([f"trained: {run_dir}", *runs.ended(run_dir)]))
    except Preempted as stop:
        leave(stop, cfg)
    except NumericalError as error:
        if not (cfg.objective and sweep.is_sweep()):
            raise
        print(f"open-kandinsky train: {error}", file=sys.stderr, flush=True)
        return None
    return runs.figure(Path(cfg.run_dir), cfg.objective) if cfg.objective else None


@compose.command("train", first=lambda cfg: launch.agree(cfg.trainer.get("num_nodes", 1)))
def main(cfg: DictConfig) -> float | None:
    return trained(cfg)


if __name__ == "__main__":
    main()
