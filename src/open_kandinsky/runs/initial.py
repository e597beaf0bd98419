"""Weights that a training begins with: those of another run, or published ones."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from open_kandinsky import loading
from open_kandinsky.core.errors import UserError
from open_kandinsky.weights.source import Source

log = logging.getLogger(__name__)

FIRST = "conv_in.weight"  # a U-Net's


def fill(network: nn.Module, name: str, source: Source) -> None:
    """Give a network, a stage's `name`, the weights that `source` has for it; any form that `load` reads.

    An input of more channels than the source's, as inpainting's, is the same function at first: the further channels
    have weights of zero, which is logged. ValueError where anything else differs in name or shape.
    """
    own, theirs = network.state_dict(), loading.network(loading.part(name, source)).state_dict()
    state = {key: widened(key, x, own[key]) if key in own else x for key, x in theirs.items()}
    refuse_others(state, own, f"init={source}")
    network.load_state_dict(state)


def widened(key: str, x: Tensor, own: Tensor) -> Tensor:
    """A first convolution's weights with zeros for input channels that it did not have."""
    more = own.shape[1] - x.shape[1] if key == FIRST and x.ndim == own.ndim else 0
    if more <= 0:
        return x
    log.warning("%s: the last %d of %d input channels are new, and start at zero", key, more, own.shape[1])
    return torch.cat([x, x.new_zeros(len(x), more, *x.shape[2:])], dim=1)


def refuse_others(state: Mapping[str, Any], own: Mapping[str, Any], told: str) -> None:
    """ValueError at weights that the network lacks, wants, or has in another shape."""
    wrong = sorted(key for key in state.keys() ^ own.keys())
    if wrong:
        raise UserError(f"{told}: {len(wrong)} weights are in one of both networks only, {wrong[0]!r} among them")
    shapes = {key: (tuple(state[key].shape), tuple(x.shape)) for key, x in own.items()}
    unlike = [f"{key} {there}, and here {here}" for key, (there, here) in shapes.items() if there != here]
    if unlike:
        raise UserError(
            f"{told}: {len(unlike)} weights have another shape: {unlike[0]}; choose the network they are of"
        )
