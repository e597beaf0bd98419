"""A training step at full size on one GPU, 256 px from a cache, bf16-mixed: against the time its FLOPs take at most.

Kandinsky 2.1's decoder and prior as their recipes in conf/experiment/kandinsky21 have them, on one GPU, with as many
examples as it holds, as they are and with engine=compile; a stream brings random rows of a cache of the recipes' sizes.
Theirs is the step's counted FLOPs over the dense rate of this GPU, the best that a product of two 8192 x 8192 bfloat16
matrices reaches here: the ratio is MFU of that rate. Nothing is measured without a GPU; --quick shows that it runs.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from lightning import Callback

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from caches import CLIP, XLM_R, write_cache  # noqa: E402
from decoder_step import SILENT  # noqa: E402
from pairs import of_width  # noqa: E402
from timing import Effort, Entry, alone, main, waited  # noqa: E402

from open_kandinsky.callbacks.throughput import Throughput  # noqa: E402
from open_kandinsky.config import compose  # noqa: E402
from open_kandinsky.train import hush, make  # noqa: E402

SIDE = 8192  # of the matrices whose product has the dense rate
BEFORE, WINDOW = 5, 8  # steps: that do not count, and that are timed together


class Training(NamedTuple):
    batch: int  # on one H100 of 80 GB
    goal: float  # of the dense rate
    width: int  # of the cache's text states
    states: str  # of which the cache holds these
    small: list[str]  # to see that it runs


TRAININGS = {
    "decoder_256": Training(160, 0.5, XLM_R, "all", [*of_width(32), "stage.network.blocks=1"]),
    "prior": Training(256, 0.4, CLIP, "words", ["stage.network.width=64", "stage.network.layers=2"]),
}


class Windows(Callback):
    """Seconds of a step, each the mean of a window of steps, at whose ends the GPU is waited for."""

    def __init__(self) -> None:
        self.steps, self.seconds, self.since = 0, [], 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1
        if self.steps >= BEFORE and (self.steps - BEFORE) % WINDOW == 0:
            now = waited()
            if self.steps > BEFORE:
                self.seconds.append((now - self.since) / WINDOW)
            self.since = now


def dense_rate() -> float:
    """FLOP/s."""
    a, b = torch.randn(2, SIDE, SIDE, device="cuda", dtype=torch.bfloat16)
    found = []
    for _ in range(30):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        found.append(2 * SIDE**3 / (start.elapsed_time(end) / 1e3))
    return max(found)


def trained(stage: str, training: Training, engine: str, windows: int, folder: Path) -> tuple[Windows, float]:
    """The times, and the FLOPs of an example."""
    there = torch.cuda.is_available()
    chosen = [f"experiment=kandinsky21/{stage}", f"data.path={folder}", f"engine={engine}", "trainer.num_nodes=1"]
    chosen += [f"trainer={'gpu' if there else 'cpu'}", "trainer.val_check_interval=null"]
    chosen += [f"data.batch_size={training.batch if there else 2}", "data.shuffle_buffer=256"]
    chosen += [f"data.workers={min(os.cpu_count() or 1, 4)}"]
    cfg: Any = compose.compose("train", chosen + ([] if there else training.small))
    watch, throughput = Windows(), Throughput()
    steps = BEFORE + windows * WINDOW
    trainer = instantiate(cfg.trainer, max_steps=steps, _convert_="all")(
        callbacks=[make(cfg.callbacks.ema), make(cfg.callbacks.health), throughput, watch],
        **dict.fromkeys(SILENT, False),
    )
    torch.manual_seed(0)
    trainer.fit(make(cfg.stage), make(cfg.data))
    return watch, throughput.flops


def claims(effort: Effort) -> Iterator[Entry]:
    hush()
    there = torch.cuda.is_available()
    if not there and not effort.quick:
        return
    rate = dense_rate() if there else None
    for stage, training in TRAININGS.items():
        with tempfile.TemporaryDirectory() as root:
            folder = write_cache(
                Path(root) / "cache", 2048 if there else 512, training.width, training.states, uniform=True
            )
            for engine in ("plain", "compile") if there else ("plain",):
                yield measured(stage, training, engine, effort, folder, rate)
                torch._dynamo.reset()


def measured(stage: str, training: Training, engine: str, effort: Effort, folder: Path, rate: float | None) -> Entry:
    if rate is None:
        watch, _ = trained(stage, training, engine, 1, folder)
        return alone(f"a training step of a small {stage}, without a GPU", seconds=median(watch.seconds))
    torch.cuda.reset_peak_memory_stats()
    watch, flops = trained(stage, training, engine, 1 if effort.quick else 3, folder)
    ours, floor = median(watch.seconds), training.batch * flops / rate
    return {
        "claim": f"a training step of the {stage}, full size, batch {training.batch}, bf16-mixed, engine={engine}",
        "ours_s": ours,
        "theirs_s": floor,
        "ratio": floor / ours,
        "goal": training.goal,
        "spread": (max(watch.seconds) - min(watch.seconds)) / ours,
        "images_per_second": training.batch / ours,
        "dense_tflops": rate / 1e12,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


if __name__ == "__main__":
    main(claims, __doc__)
