"""Networks that live on another device than what they are given."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Device = str | torch.device
ANSWERS = ("forward", "encode_text", "encode_image", "encode_tokens", "null_text", "null_image", "encode", "decode")
KEPT = ("prefix", "context")  # values that only the network itself reads: they stay where it is


def at_home(network: Any, home: Device) -> Any:
    """The same network, which takes tensors from anywhere to its own device, and its answers to `home`."""
    own = next(network.parameters()).device
    for name in (*ANSWERS, *KEPT):
        if callable(method := getattr(network, name, None)):
            setattr(network, name, travelling(method, own, home if name in ANSWERS else own))
    return network


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
