"""A training step of the decoder, 2.1's shape at 128 channels: against the step of diffusers' example training loop.

Ours is a step of the Trainer with the stage and the moving average as conf/ has them. Theirs is what
examples/kandinsky2_2/text_to_image does with their UNet2DConditionModel, torch's AdamW and their EMAModel, in float32.
Same weights, batch, draws, loss (squared error of the noise), clipping and rates; `error` is of the first loss,
`error_last` of the last, after as many updates.
"""

import gc
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from hydra.utils import instantiate
from lightning import Callback, LightningDataModule

sys.path.insert(0, str(Path(__file__).parents[1]))

from pairs import Pair, of_width, tensors, unet  # noqa: E402
from timing import Effort, Entry, main  # noqa: E402

from open_kandinsky.config import compose  # noqa: E402
from open_kandinsky.core.draws import ALONE  # noqa: E402
from open_kandinsky.train import hush, make  # noqa: E402

BATCH, CLIP = 4, 1.0
GOALS = {"32-true": 1.4, "bf16-mixed": 2.5}
SHAPES = {"image_emb": (768,), "text_emb": (768,), "text_tokens": (77, 1024)}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
CHOSEN = ["stage=decoder", "loss=mse", "parameterisation=unused_range", "stage.drop_text=0.0", "stage.drop_image=0.0"]
CHOSEN += ["lr_schedule=constant", "stage.lr_schedule.warmup=1", f"trainer.gradient_clip_val={CLIP}", "data.path=none"]
SILENT = ["enable_checkpointing", "enable_progress_bar", "logger"]


class Same(LightningDataModule):
    """One batch, again and again."""

    def __init__(self, side: int) -> None:
        super().__init__()
        shapes = {"z": (4, side, side)} | SHAPES
        drawn = tensors({name: (BATCH, *shape) for name, shape in shapes.items()})
        self.batch = drawn | {"key": [str(row) for row in range(BATCH)]}
        self.null = {name: torch.zeros(1, *shape) for name, shape in SHAPES.items()}

    def train_dataloader(self) -> Any:
        return Forever(self.batch)


class Forever:
    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return repeat(self.batch)


class Example:
    """Their loop's step, given noise and timesteps."""

    def __init__(self, network: Any, optimizer: torch.optim.Optimizer) -> None:
        group = {name: optimizer.param_groups[0][name] for name in ("lr", "betas", "eps", "weight_decay")}
        self.network = network.train()
        self.optimizer = torch.optim.AdamW(network.parameters(), **group)
        self.ema = EMAModel(network.parameters(), decay=0.9999, model_cls=type(network), model_config=network.config)
        self.scheduler = DDPMScheduler(**BETAS)

    def step(self, batch: dict[str, Any], t: torch.Tensor, noise: torch.Tensor) -> float:
        noisy = self.scheduler.add_noise(batch["z"], noise, t)
        conditions = {"image_embeds": batch["image_emb"], "text_embeds": batch["text_emb"]}
        said = self.network(noisy, t, batch["text_tokens"], added_cond_kwargs=conditions).sample
        loss = F.mse_loss(said[:, : noise.shape[1]].float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.network.parameters())
        return loss.item()


class Turns(Callback):
    """After each step of the trainer's, one of theirs with the same draws; the last of the callbacks."""

    def __init__(self, theirs: Any) -> None:
        self.theirs = theirs
        self.times: list[tuple[float, float]] = []
        self.losses: list[tuple[float, float]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.example = Example(self.theirs, trainer.optimizers[0])
        self.since = time.perf_counter()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.drawn_from = torch.get_rng_state()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        ours = float(outputs["loss"])
        now = time.perf_counter()
        with torch.random.fork_rng():
            torch.set_rng_state(self.drawn_from)
            t, noise = ALONE.integers(batch["z"], 1000), ALONE.normal(batch["z"])
        theirs = self.example.step(batch, t, noise)
        over = time.perf_counter()
        self.times.append((now - self.since, over - now))
        self.losses.append((ours, theirs))
        self.since = time.perf_counter()


def measured(pair: Pair, channels: int, side: int, precision: str, steps: int) -> Turns:
    cfg: Any = compose.compose("train", [*CHOSEN, *of_width(channels), f"trainer.precision={precision}"])
    stage = make(cfg.stage)
    stage.network.load_state_dict(pair.ours.state_dict())
    watch = Turns(pair.theirs)
    callbacks = [make(cfg.callbacks.ema), watch]
    quiet = dict.fromkeys(SILENT, False)
    instantiate(cfg.trainer, max_steps=steps, _convert_="all")(callbacks=callbacks, **quiet).fit(stage, Same(side))
    return watch


def claims(effort: Effort) -> Iterator[Entry]:
    hush()
    channels, side = (64, 8) if effort.quick else (128, 32)
    for precision, goal in GOALS.items():
        watch = measured(unet(channels), channels, side, precision, effort.repeats + 1)
        times, ratios = watch.times[1:], sorted(theirs / ours for ours, theirs in watch.times[1:])
        ours_s, theirs_s = (statistics.median(side) for side in zip(*times, strict=True))
        del watch.example, watch.theirs  # 3 GB of theirs, and as much of ours in what refers to it
        gc.collect()
        errors = [abs(ours - theirs) / theirs for ours, theirs in watch.losses]
        yield {
            "claim": f"decoder training step, {channels} channels, batch {BATCH}, {precision}",
            "ours_s": ours_s,
            "theirs_s": theirs_s,
            "ratio": statistics.median(ratios),
            "goal": goal,
            "spread": (ratios[-1] - ratios[0]) / statistics.median(ratios),
            "error": errors[0],
            "error_last": errors[-1],
        }


if __name__ == "__main__":
    main(claims, __doc__)
