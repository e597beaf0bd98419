"""Batch normalisation over the batch of all processes."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from open_kandinsky.core.distributed import world_size


class SharedBatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d, in training by the moments of all processes' pixels, so that R processes norm as one does.

    torch's SyncBatchNorm is the same on GPUs, and does not run on CPUs. Each process has as many pixels.
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
