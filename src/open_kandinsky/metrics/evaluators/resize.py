"""Ways to resize pictures for a network: the same pictures give another FID by each, so a protocol names its own.

Each takes uint8 [0, 255] to float levels [0, 255], `size` x `size` whatever the proportions were.
"""

import torch
from einops import rearrange
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.nn import functional as F


def tf1(pixels: UInt8[Tensor, "b c h w"], size: int) -> Float32[Tensor, "b c {size} {size}"]:
    """TensorFlow 1's bilinear, not antialiased, with corners where it has them and no half pixels: the original FID's.

    Bit-equal on the CPU to torch-fidelity's, which reads every pixel four times; this reads it twice.
    """
    x = pixels.float()
    lower, upper, part = taps(x.shape[-1], size, x.device)
    x = between(x.index_select(-1, lower), x.index_select(-1, upper), part)
    lower, upper, part = taps(x.shape[-2], size, x.device)
    return between(x.index_select(-2, lower), x.index_select(-2, upper), rearrange(part, "h -> h 1"))


def taps(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Each new position's two neighbours among the old, and how far it lies from the first to the second."""
    at = torch.arange(new, dtype=torch.float32, device=device) * torch.tensor(old / new, dtype=torch.float32)
    lower = at.long()
    return lower, (lower + 1).clamp_max(old - 1), at - lower


def between(a: Float[Tensor, "..."], b: Float[Tensor, "..."], part: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return (b - a).mul_(part).add_(a)


def clean(pixels: UInt8[Tensor, "b c h w"], size: int) -> Float32[Tensor, "b c {size} {size}"]:
    """Antialiased bicubic, clamped and not rounded: clean-fid's (Parmar et al. 2022) to 0.01 of a level.

    clean-fid does it with PIL, a channel at a time in mode F; torch does the same on any device.
    """
    x = F.interpolate(pixels.float(), size=(size, size), mode="bicubic", align_corners=False, antialias=True)
    return x.clamp_(0, 255)
