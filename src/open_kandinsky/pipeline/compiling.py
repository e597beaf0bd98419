"""Networks that are compiled for drawing: the first pictures of a size wait for it, all others come sooner."""

import os
import shutil
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
import torch._inductor.config

from open_kandinsky.weights.devices import Device, placed

DRAWING = ("prior", "decoder", "movq")
REPEATED = ("forward", "encode", "decode")  # what drawing asks of U-Net, prior and MoVQ


def check(device: Device | Mapping[str, Device], *, offload: bool) -> None:
    """ValueError for networks that take turns, and for a CPU whose programs cannot be made."""
    if offload:
        raise ValueError("offload and compile: what is compiled keeps its place; choose one of them")
    devices, compiler = placed(device), os.environ.get("CXX", "g++")
    if any(torch.device(devices[part]).type == "cpu" for part in DRAWING) and not shutil.which(compiler):
        raise ValueError(f"compile=true: on a CPU it needs a C++ compiler, and there is no {compiler!r}: install one")


def compiled(network: Any) -> Any:
    """The same network, frozen, whose methods go through torch.compile when they are first called.

    It stays on its device.
    """
    on_cpu = next((p.device.type for p in network.parameters()), "cpu") == "cpu"
    for name in REPEATED:
        if callable(method := getattr(network, name, None)):
            made = torch.compile(method)
            setattr(network, name, constant(made) if on_cpu else made)
    return network


def constant(made: Callable[..., Any]) -> Callable[..., Any]:
    """Weights become a part of the program, laid out as its kernels read them once and not at each call: held twice.

    Set for the call and not as an option of the compiler, which is asked before it sees its options.
    """

    @wraps(made)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._inductor.config.patch(freezing=True):
            return made(*args, **kwargs)

    return run
