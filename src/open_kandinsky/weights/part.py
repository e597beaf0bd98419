"""One network as it was found on a disk, whoever wrote it, in our terms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.weights.keymap import State

PARTS = ("clip", "movq", "prior", "decoder")
FACTS = ("clip", "clip_text_width", "text_length", "latent_channels", "quantise_latents")
TEXT = "text"  # the decoder's own text encoder: a system may have none
REST = "rest"  # where a mapping from parts names some: all others


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
    choice: bool = False  # whether it is a training's checkpoint, with weights and maybe their averages


def agree(parts: Mapping[str, Part]) -> None:
    """ValueError where two parts were trained on different facts, such as CLIP's width."""
    for fact in FACTS:
        values = {name: part.config["dims"].get(fact) for name, part in parts.items()}
        values = {name: value for name, value in values.items() if value is not None}
        if len(set(values.values())) > 1:
            seen = ", ".join(f"{name} ({parts[name].folder}) {value}" for name, value in values.items())
            raise UserError(f"weights that do not belong together: dims.{fact} is {seen}")


def left_out(dropped: Mapping[str, int]) -> str:
    """What a source holds that is no weight of the network."""
    return "left out by name: " + ", ".join(f"{name} ({count})" for name, count in dropped.items())
