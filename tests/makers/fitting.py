"""One batch, trained on again and again."""

from itertools import repeat

import torch
from lightning import Callback, LightningDataModule, Trainer

from open_kandinsky.callbacks.seeding import RandomNumbers

KEYS = [f"00000/{at:03d}" for at in range(8)]
CAPTIONS = [
    f"a {size} {colour} {shape}"
    for size in ("small", "large")
    for colour in ("red", "blue")
    for shape in ("circle", "cross")
]


def images(n=4):
    """Colour ramps, one direction an image, as pixels and (the same numbers) as CLIP sees them."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 32)] * 2, indexing="ij")
    angle = torch.linspace(0, 3, n)[:, None, None]
    ramp = angle.cos() * x + angle.sin() * y
    pixels = torch.stack([ramp, -ramp, ramp.square() - 0.5], dim=1).clamp(-1, 1)
    return {"pixels": pixels, "clip_pixels": pixels.clone(), "caption": CAPTIONS[:n], "key": KEYS[:n]}


def latents(n=8, length=16, width=32):
    draws = torch.Generator().manual_seed(7)
    mask = torch.arange(length) < torch.arange(4, 4 + n)[:, None]
    return {
        "z": torch.randn(n, 4, 8, 8, generator=draws),
        "image_emb": 2 + 3 * torch.randn(n, width, generator=draws),
        "text_emb": torch.randn(n, width, generator=draws),
        "text_tokens": torch.randn(n, length, width, generator=draws),
        "text_mask": mask,
        "caption": CAPTIONS[:n],
        "key": KEYS[:n],
    }


class Forever:
    """Not a list, which Lightning takes for one of loaders."""

    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        return repeat(self.batch)


class Repeated(LightningDataModule):
    """The same batch, with the statistics and null conditions that prior and decoder ask their data for."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch
        tensors = {k: v for k, v in batch.items() if k in ("image_emb", "text_emb", "text_tokens", "text_mask")}
        self.null = {name: torch.zeros_like(value[:1]) for name, value in tensors.items()}
        if "text_mask" in self.null:
            self.null["text_mask"][:, :2] = True

    def statistics(self, field):
        values = self.batch[field].transpose(0, 1).flatten(1)
        return values.mean(1), values.std(1)

    def train_dataloader(self):
        return Forever(self.batch)


class Losses(Callback):
    def __init__(self):
        self.curve = []

    def on_train_batch_end(self, trainer, *_):
        self.curve.append({name: float(value) for name, value in trainer.callback_metrics.items()})


QUIET = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)


def trainer(steps, *callbacks, **options):
    settings = QUIET | dict(accelerator="cpu", devices=1, max_steps=steps, num_sanity_val_steps=0) | options
    return Trainer(callbacks=[*callbacks, RandomNumbers(seed=0)], **settings)


def fit(stage, batch, steps, *callbacks, **options):
    """The loss at each step."""
    losses = Losses()
    trainer(steps, losses, *callbacks, **options).fit(stage, datamodule=Repeated(batch))
    return [step["train/loss"] for step in losses.curve]
