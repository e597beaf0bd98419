"""Where the time of a forward pass goes, and what the machine would need at the least.

    python benchmarks/profile_parts.py [--quick]

Each network runs in float32 under torch's profiler; operations are summed by kind. `floor` is the counted FLOPs over
the rate of large products with packed weights, or the weights' bytes over the rate of a copy, whichever is longer; both
rates are the best of some in the same run, before and after. The gap is what is left to win, most of it in kernels.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # before torch: its profiler talks

import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))

from pairs import network, tensors  # noqa: E402
from timing import seconds, where  # noqa: E402

from open_kandinsky.pipeline.packing import packed  # noqa: E402

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


def networks(quick: bool) -> dict[str, tuple[torch.nn.Module, Run]]:
    """Name -> a network and what is run of it: Kandinsky 2.1's shapes, two pictures."""
    side, width = (16, 512) if quick else (32, 2048)
    unet, _ = network("stage=decoder", "stage.network.channels=128", "stage.network.emb=512")
    prior, _ = network("stage=prior", f"stage.network.width={width}", f"stage.network.heads={width // 64}")
    movq, _ = network("stage=movq", "sampling=none", "network/movq=movq_67m", "data.padding=false")
    unet, movq = (made.to(memory_format=torch.channels_last) for made in (unet, movq))
    x = tensors({"z": (2, 4, side, side), "pixels": (2, 3, 8 * side, 8 * side), "emb": (2, 768)})
    tokens = tensors({"clip": (2, 77, 768), "xlm_r": (2, 77, 1024)})
    t, mask = torch.tensor([500, 20]), torch.ones(2, 77, dtype=torch.bool)
    context = unet.context(x["emb"], tokens["xlm_r"], x["emb"])
    prefix = prior.prefix(tokens["clip"], x["emb"], mask)
    return {
        f"U-Net, 128 channels, {8 * side} px": (unet, lambda: unet(x["z"], t, context)),
        f"prior, width {width}, a step": (prior, lambda: prior(x["emb"], t, prefix)),
        f"prior, width {width}, a caption": (prior, lambda: prior.prefix(tokens["clip"], x["emb"], mask)),
        f"MoVQ encode, {8 * side} px": (movq.encoder, lambda: movq.encode(x["pixels"])),
        f"MoVQ decode, {8 * side} px": (movq.decoder, lambda: movq.decode(x["z"])),
    }


def fastest(run: Run, repeats: int = 5) -> float:
    run()
    return min(seconds(run) for _ in range(repeats))


def peaks() -> tuple[float, float]:
    """FLOP/s of products with packed weights and bytes/s of a copy, read and written: the best of several sizes."""
    big = torch.randn(2**25)
    target = torch.empty_like(big)
    squares = [(side, packed(torch.nn.Linear(side, side)), torch.randn(side, side)) for side in (1024, 2048, 3072)]
    rates = [2 * side**3 / fastest(partial(layer, x), 8) for side, layer, x in squares]
    for c, side in ((512, 8), (256, 16)):
        rates.append(2 * 2 * (3 * side * c) ** 2 / fastest(partial(*convolution(c, side)), 8))
    return max(rates), 2 * big.nbytes / fastest(lambda: target.copy_(big), 8)


def convolution(channels: int, side: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """3 x 3, of two maps."""
    return packed(torch.nn.Conv2d(channels, channels, 3, padding=1)), torch.randn(2, channels, side, side)


def shares(run: Run) -> dict[str, float]:
    """Of the time in operations, by kind."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    spent = dict.fromkeys(COLUMNS, 0.0)
    for event in profiled.key_averages():
        spent[kind(event.key)] += event.self_cpu_time_total
    return {name: value / sum(spent.values()) for name, value in spent.items()}


def counted(weights: torch.nn.Module, run: Run) -> tuple[int, int]:
    """FLOPs and bytes of weights, while these are plain: products of packed ones are not counted."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops(), sum(p.nbytes for p in weights.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    quick = parser.parse_args().quick
    torch.set_num_threads(2)
    began = time.strftime("%Y-%m-%d")
    with torch.inference_mode():
        first, made = peaks(), networks(quick)
        needed = {name: counted(weights, run) for name, (weights, run) in made.items()}
        for weights, _ in made.values():
            packed(weights)  # as `load` has them on a CPU
        measured = {name: (fastest(run), shares(run)) for name, (_, run) in made.items()}
        rate, copied = map(max, zip(first, peaks(), strict=True))
    print(f"{where()}, {began}: {rate / 1e9:.0f} GFLOP/s, {copied / 1e9:.1f} GB/s\n")
    print("| | seconds | GFLOP | floor, s | gap | " + " | ".join(COLUMNS) + " |")
    print("|---" * (5 + len(COLUMNS)) + "|")
    for name, (took, parts) in measured.items():
        flops, size = needed[name]
        floor = max(flops / rate, size / copied)
        told = " | ".join(f"{share:.0%}" for share in parts.values())
        print(f"| {name} | {took:.3f} | {flops / 1e9:.1f} | {floor:.3f} | {took / floor:.1f}x | {told} |")


if __name__ == "__main__":
    main()
