"""Trainings of a few steps on batches that all processes share: the same samples, however many there are."""

from itertools import count

import torch
from hydra.utils import instantiate
from lightning import Callback, LightningDataModule
from makers.fitting import QUIET, Losses
from makers.system import config, nothing_at_zero

from open_kandinsky.callbacks.ema import EMA
from open_kandinsky.callbacks.seeding import RandomNumbers
from open_kandinsky.core.distributed import rank_and_world_size, unsharded

STEPS = 20
# Where a gradient is nothing but rounding (the bias of keys), Adam makes whole steps of it; not with this eps.
STEADY = ["+stage.optimizer.eps=1e-4", "lr_schedule=constant", "stage.lr_schedule.warmup=2"]
# A latent that lies halfway between two codes takes either, by rounding: fewer of them do where codes move little.
SLOWLY = ["stage.lr_schedule.warmup=50"]
CASES = {
    "clip": [],
    "prior": [],
    "prior_residual": [],
    "decoder": ["trainer.gradient_clip_val=0.1"],
    "inpainting": ["stage=decoder_inpainting", "stage.network.in_channels=9"],
    "movq": ["stage.quantise_from=3", "stage.adversary_from=100", *SLOWLY],
    "movq_adversary": ["stage.quantise_from=3", "stage.adversary_from=6", *SLOWLY],
}
LATE = {"movq": ["stage.quantise_from=0", "stage.adversary_from=100"]}
PART = {"inpainting": "decoder", "movq_adversary": "movq"}
ROWS = 8  # of a batch of all processes
WORDS = "one two three four five six seven eight".split()


def batch(at):
    """Random, and another one at each step."""
    draws = torch.Generator().manual_seed(100 + at)
    pixels = torch.randn(ROWS, 3, 32, 32, generator=draws).cumsum(2).cumsum(3).div(20).tanh()
    return {
        "pixels": pixels,
        "clip_pixels": pixels,
        "z": torch.randn(ROWS, 4, 8, 8, generator=draws),
        "image_emb": 2 + torch.randn(ROWS, 32, generator=draws),
        "text_emb": torch.randn(ROWS, 32, generator=draws),
        "text_tokens": torch.randn(ROWS, 16, 32, generator=draws),
        "text_mask": torch.arange(16) < torch.arange(4, 4 + ROWS)[:, None],
        "caption": [f"{word} {at}" for word in WORDS],
        "key": [f"{at:05d}/{row:03d}" for row in range(ROWS)],
    }


class Shared(LightningDataModule):
    """Each process has its rows of every batch."""

    def __init__(self):
        super().__init__()
        first = batch(0)
        self.null = {name: torch.zeros_like(first[name][:1]) for name in ("image_emb", "text_emb", "text_tokens")}
        self.null["text_mask"] = torch.arange(16)[None] < 2

    def statistics(self, field):
        return torch.linspace(-0.5, 0.5, batch(0)[field].shape[1]), torch.linspace(0.5, 2, batch(0)[field].shape[1])

    def own(self, at):
        rank, processes = rank_and_world_size()
        b = ROWS // processes
        return {name: values[rank * b : (rank + 1) * b] for name, values in batch(at).items()}

    def train_dataloader(self):
        return FromStep(self)

    def val_dataloader(self):
        return torch.utils.data.DataLoader([1000, 1001], batch_size=None, collate_fn=self.own)


class FromStep:
    """Batches without end, from the step that the run is at."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return map(self.data.own, count(self.data.trainer.global_step))


def trained(part, strategy, processes, steps, *more, resume=None, save=None, **options):
    """Losses of each step, figures of the last validation, and whole weights and averages."""
    torch.use_deterministic_algorithms(True)
    given = [f"strategy={strategy}", f"trainer.devices={processes}", f"trainer.max_steps={steps}", *more]
    cfg = config(part, "runs", *given)
    torch.manual_seed(0)
    stage = instantiate(cfg.stage, _convert_="all")
    losses, ema = Losses(), EMA(decay=0.9)
    make = instantiate(cfg.trainer, _convert_="all")
    settings = QUIET | dict(check_val_every_n_epoch=None, val_check_interval=steps, use_distributed_sampler=False)
    trainer = make(callbacks=[losses, ema, RandomNumbers(seed=0)], **settings | options)
    trainer.fit(stage, datamodule=Shared(), ckpt_path=resume, weights_only=True)
    if save:
        trainer.save_checkpoint(save)
    return {
        "curve": losses.curve,
        "validated": {name: float(x) for name, x in trainer.callback_metrics.items() if name.startswith("val/")},
        "weights": {name: unsharded(x.detach()).clone() for name, x in stage.state_dict().items()},
        "average": {name: unsharded(x).clone() for name, x in ema.average.items()},
        "sharded": sorted({type(p).__name__ for p in stage.parameters()}),
    }


def run(case, strategy, processes, steps=STEPS, more=(), resume=None, save=None):
    given = [*STEADY, *CASES[case], *more]
    return trained(PART.get(case, case), strategy, processes, steps, *given, resume=resume, save=save)


class Gradients(Callback):
    def on_before_optimizer_step(self, trainer, stage, optimizer):
        self.found = {name: p.grad.clone() for name, p in stage.network.named_parameters() if p.grad is not None}


def gradients(part, engine):
    """Of the first step, where no weight is zero."""
    cfg = config(part, "runs", "trainer.max_steps=1", f"engine={engine}", *LATE.get(part, []))
    torch.manual_seed(0)
    stage, kept = instantiate(cfg.stage, _convert_="all"), Gradients()
    nothing_at_zero(stage.network)
    trainer = instantiate(cfg.trainer, _convert_="all")(callbacks=[kept, RandomNumbers(seed=0)], **QUIET)
    trainer.fit(stage, datamodule=Shared())
    return kept.found
