"""What Lightning adds to a training step of the toy decoder, over a bare loop of the same; and what our callbacks add.

In one process: the trainer takes some steps, a callback takes as many by the bare loop with networks, optimiser,
schedule, averages and batches of its own, and so in turns; ratios are of neighbours. The bare loop clips and averages
as the training does, and logs nothing, checks nothing and shows nothing. The goal is for Lightning with the moving
average alone; every callback of conf/ with it looks at each step's loss and gradients, draws anew, measures and logs.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Callback

sys.path.insert(0, str(Path(__file__).parents[1]))

from timing import Effort, Entry, main  # noqa: E402

from open_kandinsky.config import compose  # noqa: E402
from open_kandinsky.core.draws import ALONE  # noqa: E402
from open_kandinsky.data.cache.folder import finish, shard_files, write_null  # noqa: E402
from open_kandinsky.data.cache.rows import (
    kept,  # noqa: E402
    rows_of,  # noqa: E402
)
from open_kandinsky.data.cache.shard import write_shard  # noqa: E402
from open_kandinsky.data.memory import FixedOrder, MemoryLoader  # noqa: E402
from open_kandinsky.train import hush, make  # noqa: E402

ROWS, STEPS = 512, 5  # of the set; of a turn
GOAL = 1 / 1.03


def cache(folder: Path, dims: Any) -> None:
    """Random embeddings and latents of the toy's sizes."""
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(ROWS, *shape, generator=random)

    images = {"z": drawn(dims.latent_channels, 8, 8), "image_emb": drawn(dims.clip)}
    texts = {"text_emb": drawn(dims.clip), "text_tokens": drawn(dims.text_length, dims.clip_text_width)}
    mask = {"text_mask": torch.ones(ROWS, dims.text_length, dtype=torch.bool)}
    names = [f"{row:05d}" for row in range(ROWS)]
    folder.mkdir()
    rows = rows_of(images, texts | mask, [[name] for name in names], names, kept("all"))
    write_shard(folder / "00000.safetensors", rows, {})
    write_null(folder, {name: column[:1] for name, column in (images | texts | mask).items() if name != "z"})
    finish(folder, {"encoders": {"clip": "none"}, "text_states": "all", "source": "none"}, shard_files(folder))


class Bare:
    """The training step by hand."""

    def __init__(self, stage: Any, loader: MemoryLoader, clip: float, decay: float) -> None:
        self.stage, self.clip, self.decay = stage, clip, decay
        self.batches = chain.from_iterable(repeat(loader))
        self.parameters = [p for p in stage.network.parameters() if p.requires_grad]
        self.optimizer = stage.optimizer(self.parameters)
        self.schedule = stage.lr_schedule(self.optimizer)
        self.average = [p.detach().clone() for p in self.parameters]

    def step(self) -> None:
        torch.manual_seed(0)
        loss = self.stage.losses(next(self.batches), ALONE)[0].mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - self.decay)


class Turns(Callback):
    """Times the trainer's steps, and as many of the bare loop's between them."""

    def __init__(self, stage: Any) -> None:
        self.stage = stage  # the bare loop's
        self.pairs: list[tuple[float, float]] = []
        self.since = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        data = trainer.datamodule
        self.stage.network.load_state_dict(pl_module.network.state_dict())
        self.stage.null.set(**data.null)
        order = FixedOrder(rows=ROWS, batch_size=data.batch_size)
        loader = MemoryLoader(table=data.table, order=order, trained=int)
        self.bare = Bare(self.stage, loader, trainer.gradient_clip_val, decay=0.999)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % STEPS:
            return
        now = time.perf_counter()
        for _ in range(STEPS):
            self.bare.step()
        over = time.perf_counter()
        self.pairs.append((now - self.since, over - now))
        self.since = over


def claims(effort: Effort) -> Iterator[Entry]:
    hush()
    for alone, who, goal in ((True, "Lightning", GOAL), (False, "Lightning and every callback", None)):
        ours, theirs, ratios = measured(alone, turns=2 + (2 if effort.quick else 6 * effort.repeats))
        middle = statistics.median(ratios)
        yield {
            "claim": f"a training step of the toy decoder by {who}, against a bare loop",
            "ours_s": ours,
            "theirs_s": theirs,
            "ratio": middle,
            "goal": goal,
            "spread": (ratios[-1 - len(ratios) // 4] - ratios[len(ratios) // 4]) / middle,
        }


def measured(alone: bool, turns: int) -> tuple[float, float, list[float]]:
    """Seconds a step of each, and all ratios in order; `alone`: without callbacks but the moving average."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        typed = ["experiment=decoder_toy", f"run_dir='{root}/run'", f"trainer.max_steps={turns * STEPS}"]
        typed += [f"data.path='{root}/cache'", "data.val_path=null"]
        cfg: Any = compose.compose("train", typed)
        cache(root / "cache", cfg.dims)
        watch = Turns(make(cfg.stage))
        callbacks = [*([make(cfg.callbacks.ema)] if alone else make(cfg.callbacks).values()), watch]
        options = {"callbacks": callbacks, "logger": make(cfg.logger), "enable_checkpointing": not alone}
        trainer = instantiate(cfg.trainer, _convert_="all")(**options)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # the progress bar is a part of what it costs
            trainer.fit(make(cfg.stage), datamodule=make(cfg.data))
    pairs = watch.pairs[2:]  # the first turns warm up
    ours, theirs = (statistics.median(side) / STEPS for side in zip(*pairs, strict=True))
    return ours, theirs, sorted(b / a for a, b in pairs)


if __name__ == "__main__":
    main(claims, __doc__)
