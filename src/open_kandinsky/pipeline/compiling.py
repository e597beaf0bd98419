"""Networks that are compiled for drawing: the first pictures of a size wait for it, all others come sooner."""

import os
import shutil
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
import torch._inductor.config

from open_kandinsky.core.errors import UserError
from open_kandinsky.weights.devices import Device, placed

DRAWING = ("prior", "decoder", "movq")
REPEATED = ("forward", "encode", "decode")  # what drawing asks of U-Net, prior and MoVQ


def check(device: Device | Mapping[str, Device], *, offload: bool) -> None:
    """ValueError for networks that take turns, and for a CPU whose programs cannot be made."""
    if offload:
        raise UserError("offload and compile: what is compiled keeps its place; choose one of them")
    devices, compiler = placed(device), os.environ.get("CXX", "g++")
    if any(on_cpu(devices[part]) and pays(part, devices[part]) for part in DRAWING) and not shutil.which(compiler):
        raise UserError(f"compile=true: on a CPU it needs a C++ compiler, and there is no {compiler!r}: install one")


def on_cpu(device: Device) -> bool:
    return torch.device(device).type == "cpu"


def pays(part: str, device: Device) -> bool:
    """Whether it draws faster compiled than packed: a prior on a CPU does not (benchmarks/README.md)."""
    return part != "prior" or not on_cpu(device)


def compiled(network: Any) -> Any:
    """The same network, frozen, whose methods go through torch.compile when they are first called.

    It stays on its device.
    """
    way = constant if on_cpu(next((p.device for p in network.parameters()), "cpu")) else torch.compile
    for name in REPEATED:
        if callable(method := getattr(network, name, None)):
            setattr(network, name, way(method))
    return network


def constant(method: Callable[..., Any]) -> Callable[..., Any]:
    """For a CPU: weights become a part of the program, laid out as its kernels read them once and not at each call.

    They are held twice. Set for the call and not as an option of the compiler, which is asked before it sees its
    options.
    """
    made = torch.compile(method)

    @wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._inductor.config.patch(freezing=True):
            return made(*args, **kwargs)

    return run
