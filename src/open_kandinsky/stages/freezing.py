"""Training a part of a network: a decoder for a domain of one's own, say, while latents stay as they are."""

from collections.abc import Sequence

from torch import nn

from open_kandinsky.core.errors import UserError


def freeze_all_but(trained: Sequence[str], network: nn.Module) -> None:
    """ValueError for what is no part of the network."""
    parts = dict(network.named_children())
    if strange := set(trained) - set(parts):
        raise UserError(f"stage.trained: {sorted(strange)[0]!r} is no part of the network: {', '.join(parts)}")
    for name, part in parts.items():
        part.requires_grad_(name in trained)
