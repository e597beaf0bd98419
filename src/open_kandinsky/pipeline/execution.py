"""Where and how the networks of a pipeline run: their devices, offloading, packed CPU weights, torch.compile.

Each function takes a network and returns the same object with some methods or weights replaced.

- several devices: `with_transfers` moves a network's inputs to its device and its outputs back
- offloading: with `ModelOffload` the networks take turns on one device
- packing: uncompiled CPU weights are laid out once for oneDNN, which otherwise does it at every call. For few rows of
  a large matrix, as in a step of the prior and the lower levels of the U-Net, that takes most of the time. The
  operators are those that torch.compile's frozen graphs call.
- torch.compile: the first pictures of a size wait for the compiler, all later ones are faster
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial, wraps
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn

from open_kandinsky.core.errors import UserError
from open_kandinsky.weights.part import PARTS, REST, TEXT

Device = str | torch.device
RESULTS = ("forward", "encode_text", "encode_image", "encode_tokens", "null_text", "null_image", "encode", "decode")
CONTEXTS = ("prefix", "context")  # methods whose result only the network itself reads: it stays on its device


def part_devices(device: Device | Mapping[str, Device]) -> dict[str, Device]:
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
    """Under torchrun and SLURM, make `cuda` the GPU of this process's local rank. ValueError as `check_device`."""
    check_device(device)
    local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID")
    if device == "cuda" and local:
        torch.cuda.set_device(int(local) % torch.cuda.device_count())


def replace_methods(network: Any, names: Iterable[str], change: Callable[[Callable[..., Any]], Any]) -> None:
    """Replace those of the named methods that the network has by `change(method)`."""
    for name in names:
        if callable(method := getattr(network, name, None)):
            setattr(network, name, change(method))


def with_transfers(network: Any, home: Device) -> Any:
    """Let a network take tensors from any device; its results are moved to `home`."""
    device = next(network.parameters()).device
    replace_methods(network, RESULTS, lambda method: transferring(method, device, home))
    replace_methods(network, CONTEXTS, lambda method: transferring(method, device, device))
    return network


class ModelOffload:
    """A device that holds one network at a time. The others wait in main memory, where they were loaded.

    Weights are copied to the device and never back: they are not trained here.
    """

    def __init__(self, device: Device | Mapping[str, Device]) -> None:
        if isinstance(device, Mapping):
            raise UserError(
                f"offload=true: the parts take turns on one device, and device={dict(device)} names several"
            )
        self.device = device
        self.running: nn.Module | None = None
        # The running network's tensors in main memory, each with the module's dict that it belongs to, and its name.
        self.waiting: list[tuple[dict[str, Any], str, Tensor]] = []

    def add(self, network: Any) -> Any:
        """Let a network move to the device whenever one of its methods is called."""
        replace_methods(network, (*RESULTS, *CONTEXTS), lambda method: self._loading(network, method))
        return network

    def _loading(self, network: nn.Module, method: Callable[..., Any]) -> Callable[..., Any]:
        method = transferring(method, self.device, self.device)

        @wraps(method)
        def loaded(*args: Any, **kwargs: Any) -> Any:
            self.load(network)
            return method(*args, **kwargs)

        return loaded

    def load(self, network: nn.Module) -> None:
        """Copy the network to the device, after the one that ran before has left it."""
        if network is self.running:
            return
        for tensors, name, tensor in self.waiting:
            tensors[name] = tensor
        # A tensor that is replaced in these dicts may be of any device.
        dicts = [tensors for module in network.modules() for tensors in (module._parameters, module._buffers)]
        self.running = network
        self.waiting = [(tensors, name, x) for tensors in dicts for name, x in tensors.items() if x is not None]
        for tensors, name, tensor in self.waiting:
            there = tensor.to(self.device)
            tensors[name] = frozen(there) if isinstance(tensor, nn.Parameter) else there


def transferring(method: Callable[..., Any], inputs: Device, outputs: Device) -> Callable[..., Any]:
    """The method with its arguments moved to one device, and its result to another."""

    @wraps(method)
    def transferred(*args: Any, **kwargs: Any) -> Any:
        return to_device(method(*to_device(args, inputs), **to_device(kwargs, inputs)), outputs)

    return transferred


def to_device(value: Any, device: Device) -> Any:
    """Tensors, also inside of tuples and dicts, moved to the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: to_device(inner, device) for key, inner in value.items()}
    if isinstance(value, tuple):
        inner = [to_device(each, device) for each in value]
        return type(value)(*inner) if hasattr(value, "_fields") else tuple(inner)
    return value


OPS: Any = torch.ops.mkldnn
NO_ACTIVATION = "none", [], ""  # oneDNN could fuse one into the product


def packable(network: nn.Module) -> bool:
    """Whether all weights are dense, on a CPU, and of a type that this CPU's oneDNN computes in."""
    if not torch.backends.mkldnn.is_available():
        return False
    dtypes = {torch.float32} | ({torch.bfloat16} if OPS._is_mkldnn_bf16_supported() else set())
    return all(p.device.type == "cpu" and p.layout == torch.strided and p.dtype in dtypes for p in network.parameters())


def packed(network: Any) -> Any:
    """Prepack the weights of linear layers and convolutions for oneDNN; inference only.

    A network that cannot be packed is returned as it is. Outputs differ by rounding; its state dict stays dense.
    """
    if packable(network):
        network.register_state_dict_post_hook(dense_state_dict)
        for layer in network.modules():
            if type(layer) is nn.Linear:
                layer.weight = frozen(OPS._reorder_linear_weight(layer.weight.detach(), None))
                layer.forward = partial(packed_linear, layer)  # pyright: ignore[reportAttributeAccessIssue]
            elif type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
                layer.forward = PackedConvolution(layer)  # pyright: ignore[reportAttributeAccessIssue]
    return network


def unpacked(network: Any) -> Any:
    """Undo `packed`; a network that is not packed is returned as it is."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and "forward" in vars(layer):
            del layer.forward
            layer.weight = frozen(dense(layer.weight))
    return network


def dense_state_dict(network: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    state |= {name: dense(weight) for name, weight in state.items()}


def dense(weight: Tensor) -> Tensor:
    return weight.to_dense() if weight.is_mkldnn else weight


def frozen(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)


def packed_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return OPS._linear_pointwise(x, layer.weight, layer.bias, *NO_ACTIVATION)


class PackedConvolution:
    """A convolution whose weight is packed for inputs of one shape, and packed anew for another shape.

    A weight packed for another shape gives the right result, and can be 20 times slower than a dense one.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        self.layer, self.shape = layer, torch.Size()
        self.arguments = [list(each) for each in (layer.padding, layer.stride, layer.dilation)] + [layer.groups]

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        if x.shape != self.shape:
            weight = dense(layer.weight).detach()
            layer.weight = frozen(OPS._reorder_convolution_weight(weight, *self.arguments, list(x.shape)))
            self.shape = x.shape
        return OPS._convolution_pointwise(x, layer.weight, layer.bias, *self.arguments, *NO_ACTIVATION)


COMPILED_PARTS = ("prior", "decoder", "movq")
COMPILED_METHODS = ("forward", "encode", "decode")  # called for every picture


def check_compile(device: Device | Mapping[str, Device], *, offload: bool) -> None:
    """ValueError for compiling together with offloading, and for a CPU without a C++ compiler."""
    if offload:
        raise UserError("offload and compile: what is compiled keeps its place; choose one of them")
    devices, compiler = part_devices(device), os.environ.get("CXX", "g++")
    on_cpu = any(is_cpu(devices[part]) and faster_compiled(part, devices[part]) for part in COMPILED_PARTS)
    if on_cpu and not shutil.which(compiler):
        raise UserError(f"compile=true: on a CPU it needs a C++ compiler, and there is no {compiler!r}: install one")


def is_cpu(device: Device) -> bool:
    return torch.device(device).type == "cpu"


def faster_compiled(part: str, device: Device) -> bool:
    """Whether a part runs faster compiled than packed: a prior on a CPU does not (benchmarks/README.md)."""
    return part != "prior" or not is_cpu(device)


def compiled(network: Any) -> Any:
    """Let a frozen network's methods be compiled when they are first called. It must stay on its device."""
    on_cpu = is_cpu(next((p.device for p in network.parameters()), "cpu"))
    replace_methods(network, COMPILED_METHODS, with_constant_weights if on_cpu else torch.compile)
    return network


def with_constant_weights(method: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for a CPU with the weights as constants, which the compiler lays out once for its kernels.

    The weights are in memory twice. `freezing` is set around the call and is no option of torch.compile, since the
    compiler reads it before it reads its options.
    """
    program = torch.compile(method)

    @wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._inductor.config.patch(freezing=True):
            return program(*args, **kwargs)

    return run


def move(network: nn.Module, device: torch.device | str, dtype: torch.dtype | None) -> None:
    """Move a network in place, its parameters to `dtype` where one is given; buffers keep their precision."""
    unpacked(network).to(device)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype or parameter.dtype)
    packed(network)
