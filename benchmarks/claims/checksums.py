"""What it costs to notice a flipped bit: 10 GB of weights and of a checkpoint, read with their checksums and without.

    python benchmarks/claims/checksums.py [--quick]

Files are in the page cache or on this machine's disk, as they come to be in turns; CRC-32 alone is of memory. Random
weights in 40 tensors of 256 MiB.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from timing import Effort, Entry, alone, compared, main, seconds  # noqa: E402

from open_kandinsky.weights import store  # noqa: E402

TENSORS, NUMBERS = 40, 64 * 2**20


def touched(state: dict[str, torch.Tensor]) -> None:
    """Read what is mapped."""
    for x in state.values():
        x.sum()


def mapped(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def claims(effort: Effort) -> Iterator[Entry]:
    numbers = 1024 if effort.quick else NUMBERS
    state = {f"{at:03d}.weight": torch.empty(numbers).uniform_() for at in range(TENSORS)}
    size = f"{sum(x.nbytes for x in state.values()) / 1e9:.1f} GB"
    yield alone(f"CRC-32 of {size}", ours_s=seconds(lambda: store.checksum(state)))
    with tempfile.TemporaryDirectory(dir=".") as folder:
        checked, plain, checkpoint = (Path(folder) / name for name in ("a.safetensors", "b.safetensors", "c.ckpt"))
        store.write(checked, state)
        store.write(plain, state, {"format": "pt"})
        torch.save(state, checkpoint)
        state.clear()  # so that what is read has room beside the page cache
        yield compared(
            f"reading {size} of weights, with their checksum against without",
            lambda: touched(store.read(checked)),
            lambda: touched(store.read(plain)),
            None,
            effort,
        )
        checked.unlink()
        plain.unlink()
        yield compared(
            f"reading {size} of a checkpoint, with its checksums against without",
            lambda: touched(store.unpickled(checkpoint)),
            lambda: touched(mapped(checkpoint)),
            None,
            effort,
        )


if __name__ == "__main__":
    main(claims, __doc__)
