"""Initial weights of a training (`init=`): those of another run, or published ones, in any form that `load` reads."""

import logging

import torch
from torch import Tensor, nn

from open_kandinsky import loading
from open_kandinsky.core.errors import UserError
from open_kandinsky.weights.source import Source

log = logging.getLogger(__name__)

CONV_IN = "conv_in.weight"  # of a U-Net


def initialise(network: nn.Module, part: str | None, source: Source) -> None:
    """Load the weights that `source` has for the part that a stage trains into its network.

    Where the network has more input channels, as for inpainting, the further ones get zero weights, which is logged: at
    first it is the same function. UserError where names or shapes differ otherwise, or the part has no weights.
    """
    if part is None:
        kind = type(network).__name__
        raise UserError(f"init={source}: a {kind} is no network of a system's, and has no weights there")
    new, old = network.state_dict(), loading.network(loading.part(part, source)).state_dict()
    if wrong := sorted(old.keys() ^ new.keys()):
        raise UserError(
            f"init={source}: {len(wrong)} weights are in one of both networks only, {wrong[0]!r} among them"
        )
    if CONV_IN in new:
        old[CONV_IN] = widened(old[CONV_IN], new[CONV_IN])
    shapes = {key: (tuple(old[key].shape), tuple(x.shape)) for key, x in new.items()}
    if unlike := [f"{key} {there}, and here {here}" for key, (there, here) in shapes.items() if there != here]:
        raise UserError(
            f"init={source}: {len(unlike)} weights have another shape: {unlike[0]}; choose the network they are of"
        )
    network.load_state_dict(old)


def widened(old: Tensor, new: Tensor) -> Tensor:
    """A first convolution's weights, with zeros for the input channels that only the new one has."""
    more = new.shape[1] - old.shape[1] if old.ndim == new.ndim else 0
    if more <= 0:
        return old
    log.warning("%s: the last %d of %d input channels are new, and start at zero", CONV_IN, more, new.shape[1])
    return torch.cat([old, old.new_zeros(len(old), more, *old.shape[2:])], dim=1)
