"""The peak of memory while weights are loaded, as a multiple of their own size; each in a process of its own.

    python benchmarks/claims/loading.py [--quick]

Above what the imports hold, by Linux's account of the process: its greatest resident set, in which a mapped file counts
too. Random weights: the decoder's U-Net, as our training leaves it and as diffusers writes it; the
prior, whose queries, keys and values are joined out of diffusers' three; the U-Net in bf16 from a float32 file.
`file` is what lies on the disk, `network` the parameters as they are held; the peak is over the larger.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UnCLIPScheduler

sys.path.insert(0, str(Path(__file__).parents[1]))

from pairs import Pair, of_width, prior, unet  # noqa: E402
from timing import Effort, Entry, alone, main  # noqa: E402

from open_kandinsky import loading  # noqa: E402
from open_kandinsky.config import compose
from open_kandinsky.weights import store  # noqa: E402

GOAL = 1.1
SCHEDULER = {"variance_type": "fixed_small_log", "prediction_type": "sample", "clip_sample_range": 10.0}


def account(figure: str) -> int:
    """Bytes, by Linux's account of this process: VmRSS is what it holds, VmHWM the most that it has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{figure}:"))


def ours(pair: Pair, folder: Path, typed: list[str]) -> None:
    compose.save(compose.compose("train", [*typed, "data.path=none"]), folder / "config.yaml")
    store.write(folder / store.WEIGHTS, pair.ours.state_dict())


def written(folder: Path, quick: bool) -> dict[str, tuple[str, Path, str]]:
    """Claim -> the part, where it lies and in what it is held."""
    channels, width = (64, 256) if quick else (128, 1024)
    decoder, of_prior = unet(channels), prior(width, heads=width // 64)
    ours(decoder, folder / "ours", ["stage=decoder", *of_width(channels)])
    decoder.theirs.save_pretrained(folder / "theirs" / "decoder" / "unet")
    DDIMScheduler(prediction_type="epsilon").save_pretrained(folder / "theirs" / "decoder" / "scheduler")
    of_prior.theirs.save_pretrained(folder / "theirs" / "prior" / "prior")
    UnCLIPScheduler(**SCHEDULER).save_pretrained(folder / "theirs" / "prior" / "scheduler")
    return {
        f"decoder, {channels} channels, as trained": ("decoder", folder / "ours", "float32"),
        f"decoder, {channels} channels, of diffusers": ("decoder", folder / "theirs" / "decoder", "float32"),
        f"prior, width {width}, of diffusers": ("prior", folder / "theirs" / "prior", "float32"),
        f"decoder, {channels} channels, as trained, to bf16": ("decoder", folder / "ours", "bfloat16"),
    }


def measured(part: str, folder: str, dtype: str) -> None:
    """In this process, as a line of JSON."""
    found = loading.part(part, {part: folder})
    Path("/proc/self/clear_refs").write_text("5")  # the most so far, which imports may have taken, is forgotten
    before = account("VmRSS")
    network = loading.network(found, getattr(torch, dtype))
    held = sum(p.numel() * p.element_size() for p in network.parameters())
    on_disk = sum(file.stat().st_size for file in found.files)
    print(json.dumps({"above_imports": account("VmHWM") - before, "network": held, "file": on_disk}))


def in_a_process(claim: str, *asked: Any) -> Entry:
    typed = [sys.executable, __file__, "--measured", *map(str, asked)]
    said = subprocess.run(typed, check=True, capture_output=True, text=True)
    figures = json.loads(said.stdout.splitlines()[-1])
    multiple = figures["above_imports"] / max(figures["network"], figures["file"])
    return alone(f"peak of loading, {claim}", multiple=multiple, goal=GOAL, **figures)


def claims(effort: Effort) -> Iterator[Entry]:
    with tempfile.TemporaryDirectory() as folder:
        for claim, asked in written(Path(folder), effort.quick).items():
            yield in_a_process(claim, *asked)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measured"]:
        measured(*sys.argv[2:])
    else:
        main(claims, __doc__)
