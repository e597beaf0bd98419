"""One network as it was found on a disk, whoever wrote it, in our terms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from open_kandinsky.weights.keymap import State

PARTS = ("clip", "movq", "prior", "decoder")
TEXT = "text"  # the decoder's own text encoder: a system may have none


class Picked(NamedTuple):
    """A network's tensors, and of what was left out of a file the names and how many."""

    state: dict[str, Tensor]
    dropped: dict[str, int]


@dataclass(frozen=True)
class Part:
    """What is needed to build a network and fill it.

    `config` is as a run's config.yaml: `dims`, `stage.network`, and of a diffusion model `stage.alpha_bar`,
    `stage.parameterisation` and what `sampling` is known. `read` gives the weights by our names, told ours by a state
    dict of any values; it raises ValueError where they do not fit.
    """

    folder: Path
    files: tuple[Path, ...]
    config: Mapping[str, Any]
    read: Callable[[State], Picked]
