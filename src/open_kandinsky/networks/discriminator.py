"""The discriminator of MoVQ's adversarial training, its loss, and batch normalisation over all processes."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from open_kandinsky.core.distributed import world_size


class SharedBatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d which in training uses the moments over all processes, so that R processes give the same as one.

    torch's SyncBatchNorm does the same on GPUs only. All processes must have equally many pixels.
    """

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if not (self.training and world_size() > 1):
            return super().forward(x)
        mean, var, pixels = shared_moments(x)
        self.follow(mean.detach(), var.detach() * (pixels / (pixels - 1)))
        scale = self.weight / (var + self.eps).sqrt()
        return x * _over(scale, x) + _over(self.bias - mean * scale, x)

    @torch.no_grad()
    def follow(self, mean: Float[Tensor, "c"], var: Float[Tensor, "c"]) -> None:
        """Move the running moments, as nn.BatchNorm2d does."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum or 0.0)
        self.running_var.lerp_(var, self.momentum or 0.0)


def shared_moments(x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "c"], Float[Tensor, "c"], int]:
    """Mean, (biased) variance, and the number of pixels, over all processes; gradients flow through.

    The mean first, and then the squares about it: E[x^2] - E[x]^2 cancels.
    """
    pixels = x.numel() // x.shape[1] * world_size()
    mean = all_reduce(x.float().sum((0, 2, 3))) / pixels
    var = all_reduce((x.float() - _over(mean, x)).square().sum((0, 2, 3))) / pixels
    return mean, var, pixels


def _over(channel: Float[Tensor, "c"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, "1 c 1 1"]:
    return channel[None, :, None, None]


class PatchGAN(nn.Module):
    """A score for each patch: strided 4x4 convolutions (Isola et al. 2017); MoVQGAN's has 2 layers of width 64.

    `norm` builds a norm for a number of channels: `nn.BatchNorm2d` is the original's, `per_image` is ours.
    """

    def __init__(self, *, channels: int, layers: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            blocks += [nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False)]
            blocks += [norm(widths[i]), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.apply(_initialise)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 ph pw"]:
        return self.net(pixels)


def per_image(channels: int, *, groups: int) -> nn.Module:
    """A norm of each image by itself.

    Batch statistics would alone distinguish real from generated batches, mix the images whose gradients R1 takes one by
    one, and depend on the number of processes.
    """
    return nn.GroupNorm(groups, channels)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def hinge(real: Float[Tensor, "..."], fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """The discriminator's loss: real above 1, fake below -1 (Lim & Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
