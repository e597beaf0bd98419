"""Where the time of a forward pass and of a training step goes, and what the machine would need at the least.

    python benchmarks/profile_parts.py [--quick]

Each network runs under torch's profiler, in float32 where nothing is said; operations are summed by kind. `floor` is
the counted FLOPs over the rate of large products with packed weights, or the weights' bytes over the rate of a copy,
whichever is longer; rates are the best of some in the same run, before and after. The gap is what is left to win, most
of it in kernels. A training step's floor is that of its FLOPs, and its update as it was measured.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # before torch: its profiler talks

import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "claims")]

from decoder_step import CHOSEN, CLIP, Same  # noqa: E402
from pairs import network, of_width, tensors  # noqa: E402
from timing import seconds, where  # noqa: E402

from open_kandinsky.config import compose  # noqa: E402
from open_kandinsky.core.draws import ALONE  # noqa: E402
from open_kandinsky.pipeline.execution import packed  # noqa: E402
from open_kandinsky.train import make  # noqa: E402

KINDS = {  # the first whose word is in an operation's name
    "convolution": ("conv",),
    "attention": ("scaled_dot_product", "flash_attention", "bmm", "softmax"),
    "linear": ("addmm", "mm", "linear"),
    "norm": ("norm",),
    "activation": ("silu", "gelu", "sigmoid"),
    "copies": ("copy", "cat", "clone", "to_copy", "fill"),
}
COLUMNS = [*KINDS, "rest"]
Run = Callable[[], Any]


def kind(name: str) -> str:
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "rest")


class Part(NamedTuple):
    """A network, what is run of it, and what it computes in."""

    network: torch.nn.Module
    run: Run
    dtype: torch.dtype = torch.float32


def networks(quick: bool) -> dict[str, Part]:
    """Kandinsky 2.1's shapes, two pictures."""
    side, width = (16, 512) if quick else (32, 2048)
    prior, _ = network("stage=prior", f"stage.network.width={width}", f"stage.network.heads={width // 64}")
    movq, _ = network("stage=movq", "sampling=none", "network/movq=movq_67m", "data.padding=false")
    movq = movq.to(memory_format=torch.channels_last)
    x = tensors({"z": (2, 4, side, side), "pixels": (2, 3, 8 * side, 8 * side), "emb": (2, 768), "clip": (2, 77, 768)})
    t, mask = torch.tensor([500, 20]), torch.ones(2, 77, dtype=torch.bool)
    prefix = prior.prefix(x["clip"], x["emb"], mask)
    return {
        f"U-Net, 128 channels, {8 * side} px": unet(side, torch.float32),
        f"the same in bfloat16, {8 * side} px": unet(side, torch.bfloat16),
        f"prior, width {width}, a step": Part(prior, lambda: prior(x["emb"], t, prefix)),
        f"prior, width {width}, a caption": Part(prior, lambda: prior.prefix(x["clip"], x["emb"], mask)),
        f"MoVQ encode, {8 * side} px": Part(movq.encoder, lambda: movq.encode(x["pixels"])),
        f"MoVQ decode, {8 * side} px": Part(movq.decoder, lambda: movq.decode(x["z"])),
    }


def unet(side: int, dtype: torch.dtype) -> Part:
    made, _ = network("stage=decoder", *of_width(128))
    made = made.to(dtype).to(memory_format=torch.channels_last)
    drawn = tensors({"z": (2, 4, side, side), "emb": (2, 768), "tokens": (2, 77, 1024)})
    x = {name: value.to(dtype) for name, value in drawn.items()}
    context, t = made.context(x["emb"], x["tokens"], x["emb"]), torch.tensor([500, 20])
    return Part(made, lambda: made(x["z"], t, context), dtype)


def fastest(run: Run, repeats: int = 5) -> float:
    run()
    return min(seconds(run) for _ in range(repeats))


def product_rate(dtype: torch.dtype) -> float:
    """FLOP/s with packed weights: the best of several sizes."""
    squares = [(side, torch.nn.Linear(side, side), torch.randn(side, side)) for side in (1024, 2048, 3072)]
    rates = [2 * side**3 / fastest(partial(packed(map.to(dtype)), x.to(dtype)), 8) for side, map, x in squares]
    for c, side in ((512, 8), (256, 16)):
        map, x = torch.nn.Conv2d(c, c, 3, padding=1), torch.randn(2, c, side, side)
        rates.append(2 * 2 * (3 * side * c) ** 2 / fastest(partial(packed(map.to(dtype)), x.to(dtype)), 8))
    return max(rates)


def copy_rate() -> float:
    """Bytes/s, read and written."""
    big = torch.randn(2**25)
    target = torch.empty_like(big)
    return 2 * big.nbytes / fastest(lambda: target.copy_(big), 8)


class Rates(NamedTuple):
    products: dict[torch.dtype, float]
    copies: float

    def best(self, other: "Rates") -> "Rates":
        products = {dtype: max(rate, other.products[dtype]) for dtype, rate in self.products.items()}
        return Rates(products, max(self.copies, other.copies))


def rates() -> Rates:
    return Rates({dtype: product_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}, copy_rate())


def shares(run: Run) -> dict[str, float]:
    """Of the time in operations, by kind."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    spent = dict.fromkeys(COLUMNS, 0.0)
    for event in profiled.key_averages():
        spent[kind(event.key)] += event.self_cpu_time_total
    return {name: value / sum(spent.values()) for name, value in spent.items()}


def counted(part: Part) -> tuple[int, int]:
    """FLOPs and bytes of weights, while these are plain: products of packed ones are not counted."""
    with FlopCounterMode(display=False) as counter:
        part.run()
    return counter.get_total_flops(), sum(p.nbytes for p in part.network.parameters())


class Step:
    """A decoder's training step as claims/decoder_step.py takes it, without the Trainer."""

    def __init__(self, channels: int, side: int) -> None:
        cfg: Any = compose.compose("train", [*CHOSEN, *of_width(channels)])
        self.stage, same = make(cfg.stage), Same(side)
        self.stage.null.set(**same.null)
        self.batch, self.weights = same.batch, list(self.stage.network.parameters())
        self.optimizer = self.stage.optimizer(self.weights)
        self.average = [weight.detach().clone() for weight in self.weights]

    def learn(self, bf16: bool) -> None:
        """Forward and backward."""
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = self.stage.losses(self.batch, ALONE)[0].mean()
        self.optimizer.zero_grad()
        loss.backward()

    def update(self) -> None:
        """Clip, move, average."""
        torch.nn.utils.clip_grad_norm_(self.weights, CLIP)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.weights, 1e-4)


class Measured(NamedTuple):
    """Seconds of a whole, shares of its kinds of operations, and what it needs."""

    took: float
    parts: dict[str, float]
    flops: int
    dtype: torch.dtype
    weights: int = 0  # bytes that are read
    fixed: float = 0.0  # seconds, of what is no product


def inference(quick: bool) -> dict[str, Measured]:
    with torch.inference_mode():
        made = networks(quick)
        needed = {name: counted(part) for name, part in made.items()}
        for part in made.values():
            packed(part.network)  # as `load` has them on a CPU
        return {
            name: Measured(fastest(part.run), shares(part.run), needed[name][0], part.dtype, needed[name][1])
            for name, part in made.items()
        }


def training(step: Step) -> dict[str, Measured]:
    with FlopCounterMode(display=False) as counter:
        step.learn(bf16=False)
    flops, updated, found = counter.get_total_flops(), fastest(step.update), {}
    for name, dtype in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        learn = partial(step.learn, dtype == torch.bfloat16)
        took = fastest(learn)
        parts = {"update": updated} | {kind: share * took for kind, share in shares(learn).items()}
        whole = took + updated
        found[name] = Measured(whole, {k: part / whole for k, part in parts.items()}, flops, dtype, fixed=updated)
    return found


def table(about: str, measured: dict[str, Measured], best: Rates) -> None:
    columns = ["seconds", "GFLOP", "floor, s", "gap", *next(iter(measured.values())).parts]
    print(f"\n| {about} | " + " | ".join(columns) + " |\n" + "|---" * (1 + len(columns)) + "|")
    for name, of in measured.items():
        floor = max(of.flops / best.products[of.dtype], of.weights / best.copies) + of.fixed
        told = " | ".join(f"{share:.0%}" for share in of.parts.values())
        print(f"| {name} | {of.took:.3f} | {of.flops / 1e9:.1f} | {floor:.3f} | {of.took / floor:.1f}x | {told} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    quick = parser.parse_args().quick
    torch.set_num_threads(2)
    began, first = time.strftime("%Y-%m-%d"), rates()
    drawn, learned = inference(quick), training(Step(*((32, 8) if quick else (128, 32))))
    best = rates().best(first)
    told = ", ".join(
        f"{rate / 1e9:.0f} GFLOP/s in {str(dtype).removeprefix('torch.')}" for dtype, rate in best.products.items()
    )
    print(f"{where()}, {began}: {told}, {best.copies / 1e9:.1f} GB/s")
    table("forward", drawn, best)
    table("training step", learned, best)


if __name__ == "__main__":
    main()
