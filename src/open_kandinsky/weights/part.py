"""A network's weights on disk, whatever form they have, described by our configs and our names of tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.weights.keymap import State

PARTS = ("clip", "movq", "prior", "decoder")
SHARED_DIMS = ("clip", "clip_text_width", "text_length", "latent_channels", "quantise_latents")
TEXT = "text"  # the decoder's own text encoder: a system may have none
REST = "rest"  # in a mapping from parts: all parts that it does not name


class Picked(NamedTuple):
    """A network's tensors by our names, and what its file holds besides them."""

    state: dict[str, Tensor]
    dropped: dict[str, int]  # a name or prefix -> how many tensors


@dataclass(frozen=True)
class Part:
    """What is needed to build a network and to load its weights.

    `config` is as a run's config.yaml: `dims`, `stage.network`, and for a diffusion model `stage.alpha_bar`,
    `stage.parameterisation` and as much of `sampling` as is known. `read` takes a state dict of the network, whose
    values do not matter, and returns the weights by the same names; ValueError where they do not fit.
    """

    folder: Path
    files: tuple[Path, ...]
    config: Mapping[str, Any]
    read: Callable[[State], Picked]
    choice: bool = False  # whether this is a training's checkpoint, which may also hold averaged weights


def agree(parts: Mapping[str, Part]) -> None:
    """ValueError where two parts were trained with different numbers, such as CLIP's width."""
    for dim in SHARED_DIMS:
        values = {name: part.config["dims"].get(dim) for name, part in parts.items()}
        if len(set(values.values()) - {None}) > 1:
            each = (f"{name} ({parts[name].folder}) {n}" for name, n in values.items() if n is not None)
            raise UserError(f"weights that do not belong together: dims.{dim} is {', '.join(each)}")


def left_out(dropped: Mapping[str, int]) -> str:
    """A line about the tensors of a source that are no weights of the network."""
    return "left out by name: " + ", ".join(f"{name} ({count})" for name, count in dropped.items())
