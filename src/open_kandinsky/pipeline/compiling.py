"""Networks that are compiled for drawing: the first pictures of a size wait for it, all others come sooner."""

from typing import Any

import torch

REPEATED = ("forward", "encode", "decode")  # what drawing asks of U-Net, prior and MoVQ


def compiled(network: Any) -> Any:
    """The same network, frozen, whose methods go through torch.compile when they are first called.

    On a CPU weights become a part of the program, laid out as its kernels read them once and not at each call: they
    are held twice. Where a network is afterwards, it stays.
    """
    options = {"freezing": next((p.device.type for p in network.parameters()), "cpu") == "cpu"}
    for name in REPEATED:
        if callable(method := getattr(network, name, None)):
            setattr(network, name, torch.compile(method, options=options))
    return network
