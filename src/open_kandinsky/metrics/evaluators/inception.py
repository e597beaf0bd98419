"""The Inception of 2015 on whose features a Frechet distance is called FID, and three ways to feed it.

The layers are torch-fidelity's, under the names of its weights file; the way through them is written out here, so that
the input is a choice of its own and convolutions may run in channels_last.
"""

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float32, UInt8
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity import feature_extractor_inceptionv3 as layers

from open_kandinsky.core.errors import UserError
from open_kandinsky.metrics.evaluators import resize

SIZE = 299
InputPath = Callable[[UInt8[Tensor, "b 3 h w"]], Float32[Tensor, "b 3 299 299"]]


class Activations(NamedTuple):
    """What FID, KID, precision and recall read (`pool`), and what the Inception score reads."""

    pool: Float32[Tensor, "b 2048"]
    logits_unbiased: Float32[Tensor, "b 1008"]  # without the last layer's bias, as in the original Inception score


def tf1(pixels: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, "b 3 299 299"]:
    """As the original FID and torch-fidelity: TensorFlow 1's bilinear, to [-1, 0.992]."""
    return (resize.tf1(pixels, SIZE) - 128) / 128


def pytorch_fid(pixels: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, "b 3 299 299"]:
    """As pytorch-fid: torch's bilinear without antialiasing, of [0, 1], to [-1, 1]."""
    x = nn.functional.interpolate(pixels.float() / 255, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return 2 * x - 1


def clean(pixels: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, "b 3 299 299"]:
    """As clean-fid's `clean`: antialiased bicubic, not rounded, to [-1, 0.992]."""
    return (resize.clean(pixels, SIZE) - 128) / 128


class Inception(nn.Module):
    """Frozen, and always in eval mode. `state` None leaves its weights random: for tests alone.

    In `torch.contiguous_format` it is bit-equal to torch-fidelity's and pytorch-fid's on the CPU; in channels_last it
    is faster and as near to the exact result. Raises ValueError for weights that are not this network's.
    """

    fc: nn.Linear

    def __init__(
        self,
        *,
        state: Mapping[str, Tensor] | None,
        input_path: InputPath,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        super().__init__()
        self.input_path = input_path
        self.memory_format = memory_format
        blocks = trunk()
        self.path = tuple(blocks)
        for name, block in blocks.items():
            self.add_module(name, block)
        self.fc = nn.Linear(2048, 1008)
        if state is not None:
            self.load(state)
        self.requires_grad_(False).eval().to(memory_format=memory_format)

    def load(self, state: Mapping[str, Tensor]) -> None:
        try:
            self.load_state_dict(dict(state))
        except RuntimeError as error:
            told = "these are not the weights of FID's Inception, as torch-fidelity and pytorch-fid publish them"
            raise UserError(f"{told}; {' '.join(str(error).split())[:200]}") from error

    def train(self, mode: bool = True) -> "Inception":
        return super().train(False)

    def forward(self, pixels: UInt8[Tensor, "b 3 h w"]) -> Activations:
        """Of uint8 pictures of any one size."""
        return self.activations(self.input_path(pixels))

    def activations(self, x: Float32[Tensor, "b 3 299 299"]) -> Activations:
        """Of pictures as an input path leaves them."""
        x = x.contiguous(memory_format=self.memory_format)
        for name in self.path:
            x = self.get_submodule(name)(x)
        pool = rearrange(x, "b c 1 1 -> b c")
        return Activations(pool, pool @ self.fc.weight.T)


def folded(network: Inception) -> Inception:
    """A copy with each batch norm multiplied into its convolution: faster still, and as near to the exact result."""
    network = copy.deepcopy(network)
    for block in network.modules():
        if isinstance(block, layers.BasicConv2d):
            block.conv = fuse_conv_bn_eval(block.conv, block.bn)
            block.register_module("bn", nn.Identity())
    return network.requires_grad_(False).to(memory_format=network.memory_format)


def trunk() -> dict[str, nn.Module]:
    """The layers up to the pooled features, in order, by their names in the weights file; pools have no weights."""
    conv = layers.BasicConv2d
    return {
        "Conv2d_1a_3x3": conv(3, 32, kernel_size=3, stride=2),
        "Conv2d_2a_3x3": conv(32, 32, kernel_size=3),
        "Conv2d_2b_3x3": conv(32, 64, kernel_size=3, padding=1),
        "MaxPool_1": nn.MaxPool2d(kernel_size=3, stride=2),
        "Conv2d_3b_1x1": conv(64, 80, kernel_size=1),
        "Conv2d_4a_3x3": conv(80, 192, kernel_size=3),
        "MaxPool_2": nn.MaxPool2d(kernel_size=3, stride=2),
        "Mixed_5b": layers.InceptionA(192, pool_features=32),
        "Mixed_5c": layers.InceptionA(256, pool_features=64),
        "Mixed_5d": layers.InceptionA(288, pool_features=64),
        "Mixed_6a": layers.InceptionB(288),
        "Mixed_6b": layers.InceptionC(768, channels_7x7=128),
        "Mixed_6c": layers.InceptionC(768, channels_7x7=160),
        "Mixed_6d": layers.InceptionC(768, channels_7x7=160),
        "Mixed_6e": layers.InceptionC(768, channels_7x7=192),
        "Mixed_7a": layers.InceptionD(768),
        "Mixed_7b": layers.InceptionE_1(1280),
        "Mixed_7c": layers.InceptionE_2(2048),
        "AvgPool": nn.AdaptiveAvgPool2d(output_size=(1, 1)),
    }
