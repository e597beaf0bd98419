"""Networks that live on another device than what they are given, and networks that take turns on one device."""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from open_kandinsky.core.errors import UserError
from open_kandinsky.weights.part import PARTS, REST, TEXT

Device = str | torch.device
Held = dict[str, Any]  # a module's tensors by name; a name may be without one
ANSWERS = ("forward", "encode_text", "encode_image", "encode_tokens", "null_text", "null_image", "encode", "decode")
KEPT = ("prefix", "context")  # values that only the network itself reads: they stay where it is


def placed(device: Device | Mapping[str, Device]) -> dict[str, Device]:
    """The device of each part; the text encoder's is CLIP's unless it is named."""
    if not isinstance(device, Mapping):
        return dict.fromkeys((*PARTS, TEXT), device)
    if unknown := set(device) - {REST, *PARTS, TEXT}:
        raise UserError(f"device: no part is called {min(unknown)!r}; the parts are {', '.join(PARTS)}, text, {REST}")
    others = device.get(REST, "cpu")
    return {part: device.get(part, others) for part in PARTS} | {TEXT: device.get(TEXT, device.get("clip", others))}


def check_device(device: str) -> None:
    """ValueError for a device that torch does not know, and for a GPU where there is none."""
    try:
        there = torch.device(device).type != "cuda" or torch.cuda.is_available()
    except RuntimeError as error:
        raise UserError(f"device={device}: no such device; cpu, cuda or cuda:1, for example") from error
    if not there:
        raise UserError(f"device={device}: this machine has no GPU that torch can use; device=cpu works anywhere")


def take_device(device: str) -> None:
    """Under torchrun and SLURM, let cuda be one GPU a process, of those that it sees; for system and evaluators alike.

    ValueError for a device that is not there.
    """
    check_device(device)
    local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID")
    if device == "cuda" and local:
        torch.cuda.set_device(int(local) % torch.cuda.device_count())


def one(device: Device | Mapping[str, Device]) -> Device:
    if isinstance(device, Mapping):
        raise UserError(f"offload=true: the parts take turns on one device, and device={dict(device)} names several")
    return device


def at_home(network: Any, home: Device) -> Any:
    """The same network, which takes tensors from anywhere to its own device, and its answers to `home`."""
    own = next(network.parameters()).device
    for name in (*ANSWERS, *KEPT):
        if callable(method := getattr(network, name, None)):
            setattr(network, name, travelling(method, own, home if name in ANSWERS else own))
    return network


class Turns:
    """A device that holds the one network that runs. The others wait where they were loaded, in main memory.

    Weights are copied to the device and never back: they are not trained here.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.waiting: list[tuple[Held, str, Tensor]] = []  # what the network that runs holds in main memory, and where
        self.running: nn.Module | None = None

    def seat(self, network: Any) -> Any:
        """The same network, which comes to the device when it is asked something."""
        for name in (*ANSWERS, *KEPT):
            if callable(method := getattr(network, name, None)):
                setattr(network, name, self._called_in(network, travelling(method, self.device, self.device)))
        return network

    def _called_in(self, network: nn.Module, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def answers(*args: Any, **kwargs: Any) -> Any:
            self.admit(network)
            return method(*args, **kwargs)

        return answers

    def admit(self, network: nn.Module) -> None:
        if network is self.running:
            return
        for held, name, tensor in self.waiting:
            held[name] = tensor
        self.running = network
        self.waiting = [(held, name, x) for held in holders(network) for name, x in held.items() if x is not None]
        for held, name, tensor in self.waiting:
            there = tensor.to(self.device)
            held[name] = nn.Parameter(there, requires_grad=False) if isinstance(tensor, nn.Parameter) else there


def holders(network: nn.Module) -> Iterator[Held]:
    """The dicts in which its modules keep their tensors: a tensor that is replaced there may be of any device."""
    for module in network.modules():
        yield module._parameters
        yield module._buffers


def travelling(method: Callable[..., Any], there: Device, back: Device) -> Callable[..., Any]:
    @wraps(method)
    def travels(*args: Any, **kwargs: Any) -> Any:
        return moved(method(*moved(args, there), **moved(kwargs, there)), back)

    return travels


def moved(value: Any, device: Device) -> Any:
    """Tensors, and those inside of tuples and dicts."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(inner, device) for key, inner in value.items()}
    if isinstance(value, tuple):
        inner = [moved(each, device) for each in value]
        return type(value)(*inner) if hasattr(value, "_fields") else tuple(inner)
    return value
