"""Networks that live on another device than what they are given, and networks that take turns on one device.

Weights as a CPU multiplies them: laid out once, and not anew at each call.

oneDNN computes on blocks of a matrix. Who gives it plain weights has them laid out for each product, and for few rows
of a large matrix, as in a prior's step and a U-Net's lower levels, that is most of the time. The operators are those
that torch.compile's frozen graphs call.

Networks that are compiled for drawing: the first pictures of a size wait for it, all others come sooner.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial, wraps
from typing import Any

import torch
import torch._inductor.config
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


OPS: Any = torch.ops.mkldnn
PLAIN = "none", [], ""  # no activation is a part of the product


def packable(network: nn.Module) -> bool:
    """Whether all its weights are plain, on a CPU, and of a type that this one's oneDNN computes in."""
    if not torch.backends.mkldnn.is_available():
        return False
    dtypes = {torch.float32} | ({torch.bfloat16} if OPS._is_mkldnn_bf16_supported() else set())
    parameters = list(network.parameters())
    return all(p.device.type == "cpu" and p.layout == torch.strided and p.dtype in dtypes for p in parameters)


def packed(network: Any) -> Any:
    """The same network, whose linear maps and convolutions hold packed weights: it draws, and is not trained.

    As it is, where it cannot be packed. Outputs differ by rounding; its state dict has plain weights.
    """
    if packable(network):
        network.register_state_dict_post_hook(unpack)
        for layer in network.modules():
            if type(layer) is nn.Linear:
                layer.weight = frozen(OPS._reorder_linear_weight(layer.weight.detach(), None))
                layer.forward = partial(linear, layer)  # pyright: ignore[reportAttributeAccessIssue]
            elif type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
                layer.forward = Convolution(layer)  # pyright: ignore[reportAttributeAccessIssue]
    return network


def unpacked(network: Any) -> Any:
    """The same network with plain weights again; one that is not packed as it is."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and "forward" in vars(layer):
            del layer.forward
            layer.weight = frozen(layer.weight.to_dense() if layer.weight.is_mkldnn else layer.weight)
    return network


def unpack(network: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    state |= {name: weight.to_dense() for name, weight in state.items() if weight.is_mkldnn}


def frozen(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return OPS._linear_pointwise(x, layer.weight, layer.bias, *PLAIN)


class Convolution:
    """A layer's product, its weight packed for maps of one shape, and packed anew when another comes.

    What is packed for one shape and read for another is right, and can be 20 times slower than what is not packed.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        self.layer, self.shape = layer, torch.Size()
        self.how = [list(each) for each in (layer.padding, layer.stride, layer.dilation)] + [layer.groups]

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        if x.shape != self.shape:
            plain = layer.weight.to_dense() if layer.weight.is_mkldnn else layer.weight
            layer.weight = frozen(OPS._reorder_convolution_weight(plain.detach(), *self.how, list(x.shape)))
            self.shape = x.shape
        return OPS._convolution_pointwise(x, layer.weight, layer.bias, *self.how, *PLAIN)


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


def move(network: nn.Module, device: torch.device | str, dtype: torch.dtype | None) -> None:
    """Move a network in place, its parameters to `dtype` where one is given; buffers keep their precision."""
    unpacked(network).to(device)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype or parameter.dtype)
    packed(network)


def size_of(network: nn.Module) -> int:
    """How many parameters a network has."""
    return sum(parameter.numel() for parameter in network.parameters())
