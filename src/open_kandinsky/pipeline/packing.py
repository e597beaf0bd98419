"""Weights as a CPU multiplies them: laid out once, and not anew at each call.

oneDNN computes on blocks of a matrix. Who gives it plain weights has them laid out for each product, and for few rows
of a large matrix, as in a prior's step and a U-Net's lower levels, that is most of the time. The operators are those
that torch.compile's frozen graphs call.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

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
