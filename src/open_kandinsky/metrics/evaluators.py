"""The networks that evaluate pictures, frozen, with published weights from files: Inception, DINOv2 and LPIPS.

- Inception of 2015: a Frechet distance on its features is called FID. The layers are torch-fidelity's; its forward pass
  is written out here, so that the preparation of its input can be chosen and convolutions may run in channels_last
- DINOv2: features for the Frechet distance of Stein et al. 2023, which is not called FID
- LPIPS: the distance of two pictures in VGG16's features (Zhang et al. 2018)

The resizing of pictures changes every figure, so a protocol must name it. Each resize takes uint8 [0, 255] to float
[0, 255] of `size` x `size`, whatever the proportions were.
"""

import copy
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity import feature_extractor_inceptionv3 as layers
from torchmetrics.functional.image.lpips import _LPIPS

from open_kandinsky.core.errors import UserError


def resize_tf1(pixels: UInt8[Tensor, "b c h w"], size: int) -> Float32[Tensor, "b c {size} {size}"]:
    """The original FID's: TensorFlow 1's bilinear, not antialiased, align_corners=False without half-pixel centres.

    Bit-equal on the CPU to torch-fidelity's, which reads every pixel four times; this reads it twice.
    """
    x = pixels.float()
    lower, upper, part = neighbours(x.shape[-1], size, x.device)
    x = interpolated(x.index_select(-1, lower), x.index_select(-1, upper), part)
    lower, upper, part = neighbours(x.shape[-2], size, x.device)
    return interpolated(x.index_select(-2, lower), x.index_select(-2, upper), rearrange(part, "h -> h 1"))


def neighbours(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each new position, its two old neighbours, and how far it lies from the first to the second, in [0, 1)."""
    at = torch.arange(new, dtype=torch.float32, device=device) * torch.tensor(old / new, dtype=torch.float32)
    lower = at.long()
    return lower, (lower + 1).clamp_max(old - 1), at - lower


def interpolated(a: Float[Tensor, "..."], b: Float[Tensor, "..."], part: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return (b - a).mul_(part).add_(a)


def resize_clean(pixels: UInt8[Tensor, "b c h w"], size: int) -> Float32[Tensor, "b c {size} {size}"]:
    """Antialiased bicubic, clamped and not rounded: clean-fid's (Parmar et al. 2022) to 0.01 of a level.

    clean-fid does it with PIL, a channel at a time in mode F; torch does the same on any device.
    """
    x = F.interpolate(pixels.float(), size=(size, size), mode="bicubic", align_corners=False, antialias=True)
    return x.clamp_(0, 255)


INCEPTION_SIZE = 299
InputPath = Callable[[UInt8[Tensor, "b 3 h w"]], Float32[Tensor, "b 3 299 299"]]


class Activations(NamedTuple):
    """Inception's outputs: `pool` for FID, KID, precision and recall, the logits for the Inception score."""

    pool: Float32[Tensor, "b 2048"]
    logits_unbiased: Float32[Tensor, "b 1008"]  # without the last layer's bias, as in the original Inception score


def tf1(pixels: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, "b 3 299 299"]:
    """As the original FID and torch-fidelity: TensorFlow 1's bilinear, to [-1, 0.992]."""
    return (resize_tf1(pixels, INCEPTION_SIZE) - 128) / 128


def pytorch_fid(pixels: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, "b 3 299 299"]:
    """As pytorch-fid: torch's bilinear without antialiasing, of [0, 1], to [-1, 1]."""
    x = nn.functional.interpolate(
        pixels.float() / 255, size=(INCEPTION_SIZE, INCEPTION_SIZE), mode="bilinear", align_corners=False
    )
    return 2 * x - 1


def clean(pixels: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, "b 3 299 299"]:
    """As clean-fid's `clean`: antialiased bicubic, not rounded, to [-1, 0.992]."""
    return (resize_clean(pixels, INCEPTION_SIZE) - 128) / 128


def wrong_weights(network: str, error: Exception) -> UserError:
    return UserError(f"these are not the weights of {network}; {' '.join(str(error).split())[:200]}")


class Inception(nn.Module):
    """FID's network, frozen and always in eval mode. `state` None leaves its weights random, for tests.

    In `torch.contiguous_format` it is bit-equal to torch-fidelity's and pytorch-fid's on the CPU; in channels_last it
    is faster and as accurate. Raises ValueError for weights that are not this network's.
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
            try:
                self.load_state_dict(dict(state))
            except RuntimeError as error:
                raise wrong_weights("FID's Inception, as torch-fidelity and pytorch-fid publish them", error) from error
        self.requires_grad_(False).eval().to(memory_format=memory_format)

    def train(self, mode: bool = True) -> "Inception":
        return super().train(False)

    def forward(self, pixels: UInt8[Tensor, "b 3 h w"]) -> Activations:
        """Activations of uint8 pictures of one size."""
        return self.activations(self.input_path(pixels))

    def activations(self, x: Float32[Tensor, "b 3 299 299"]) -> Activations:
        """Activations of pictures that an input path has prepared."""
        x = x.contiguous(memory_format=self.memory_format)
        for name in self.path:
            x = self.get_submodule(name)(x)
        pool = rearrange(x, "b c 1 1 -> b c")
        return Activations(pool, pool @ self.fc.weight.T)


def folded(network: Inception) -> Inception:
    """A copy with each batch norm multiplied into its convolution: faster still, and as accurate."""
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


DINOV2_SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of [0, 1]
Resize = Callable[[UInt8[Tensor, "b 3 h w"], int], Float32[Tensor, "b 3 s s"]]


class DINOv2(nn.Module):
    """The normalised class tokens of `network` at 224 px, frozen and always in eval mode.

    The transformer is timm's, since torch-fidelity downloads code and weights each time and accepts no weights file.
    `resized` is `resize_tf1` as in torch-fidelity, or `resize_clean` as in dgm-eval's clean form.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, network: nn.Module, resized: Resize) -> None:
        super().__init__()
        self.network = network
        self.resized = resized
        self.register_buffer("mean", rearrange(255 * torch.tensor(MEAN), "c -> c 1 1"), persistent=False)
        self.register_buffer("std", rearrange(255 * torch.tensor(STD), "c -> c 1 1"), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "DINOv2":
        return super().train(False)

    def forward(self, pixels: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, "b d"]:
        """Features of uint8 pictures of one size; 1024 numbers each for ViT-L/14."""
        return self.network((self.resized(pixels, DINOV2_SIZE) - self.mean) / self.std).float()


def vit_large() -> nn.Module:
    """ViT-L/14 for 224 px, without a head, under the names of the published weights."""
    import timm

    return timm.create_model("vit_large_patch14_dinov2", pretrained=False, img_size=DINOV2_SIZE, num_classes=0)


def load(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load published weights into a network for any size in pixels. Raises ValueError for another network's weights."""
    state = {name: value for name, value in state.items() if name != "mask_token"}
    try:
        grid = math.isqrt(network.get_parameter("pos_embed").shape[1] - 1)
        state["pos_embed"] = positions(state["pos_embed"], grid)
        network.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise wrong_weights("DINOv2 that were asked for", error) from error


def positions(pos_embed: Float[Tensor, "1 n d"], grid: int) -> Float[Tensor, "1 m d"]:
    """Position embeddings resized to `grid` x `grid` positions; the class token's is kept.

    As in DINOv2's code: bicubic, not antialiased, by a factor that is 0.1 of a position too large. timm omits the 0.1
    and antialiases, which gives other features.
    """
    of_class, old = pos_embed[:, :1], math.isqrt(pos_embed.shape[1] - 1)
    if old == grid:
        return pos_embed
    square = rearrange(pos_embed[:, 1:], "1 (h w) d -> 1 d h w", h=old)
    factor = (grid + 0.1) / old
    square = F.interpolate(square.float(), scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([of_class, rearrange(square, "1 d h w -> 1 (h w) d").to(of_class.dtype)], 1)


class LPIPSMetric(nn.Module):
    """LPIPS, frozen and always in eval mode. `state` is torchvision's VGG16; None leaves it random, for tests.

    By torchmetrics, which includes the learned weights of the layers (version 0.1, the file that torch-fidelity
    downloads). Raises ValueError for weights of another network.
    """

    def __init__(self, *, state: Mapping[str, Tensor] | None) -> None:
        super().__init__()
        self.net = _LPIPS(pretrained=True, net="vgg", pnet_rand=True)
        if state is not None:
            self.load(state)
        self.requires_grad_(False).eval()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load VGG16's convolutions, which torchmetrics has in five slices, under their numbers in `features`."""
        numbered = {name.removeprefix("features."): value for name, value in state.items() if "features." in name}
        try:
            names = {name: numbered[name.partition(".")[2]] for name in self.net.net.state_dict()}
            self.net.net.load_state_dict(names)
        except (KeyError, RuntimeError) as error:
            raise wrong_weights("VGG16, as torchvision publishes them", error) from error

    def train(self, mode: bool = True) -> "LPIPSMetric":
        return super().train(False)

    def forward(self, x: Float[Tensor, "b 3 h w"], y: Float[Tensor, "b 3 h w"]) -> Float32[Tensor, "b"]:
        """The distance of each picture in `x` from the same row of `y`, both float [-1, 1], at their own size.

        `x` is clamped as it would be when saved.
        """
        return rearrange(self.net(x.float().clamp(-1, 1), y.float()), "b 1 1 1 -> b")
