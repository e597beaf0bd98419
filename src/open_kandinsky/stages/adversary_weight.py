"""How much an autoencoder listens to its adversary."""

from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from open_kandinsky.core.distributed import mean_over_processes
from open_kandinsky.networks.movq import Reconstruction

EPSILON = 1e-4  # VQGAN's: an adversary that says the same everywhere weighs little, and not infinitely much


@runtime_checkable
class Weight(Protocol):
    """The weight of `fooling` beside `quality`, two losses of the same reconstruction."""

    def __call__(self, quality: Tensor, fooling: Tensor, made: Reconstruction, last: nn.Conv2d) -> float | Tensor: ...


class Constant:
    """The same at all times: MoVQGAN's, 0.1."""

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def __call__(self, quality: Tensor, fooling: Tensor, made: Reconstruction, last: nn.Conv2d) -> float:
        return self.weight


class Adaptive:
    """`weight` times |grad quality| / |grad fooling| at the decoder's last layer (VQGAN, Esser et al. 2021, eq. 7).

    So the adversary pulls at the decoder `weight` times as hard as the picture does, whatever either loss is scaled by.
    The ratio is at most `most`: VQGAN's 10,000 bounds nothing in practice, and lets a ratio explode when the adversary
    falls silent. It costs the pixels' gradients of both losses a second time.
    """

    def __init__(self, *, weight: float, most: float) -> None:
        self.weight, self.most = weight, most

    def __call__(self, quality: Tensor, fooling: Tensor, made: Reconstruction, last: nn.Conv2d) -> Float[Tensor, ""]:
        gradients = (last_gradient(loss, made, last) for loss in (quality, fooling))
        picture, adversary = (mean_over_processes(gradient).norm() for gradient in gradients)
        return self.weight * (picture / (adversary + EPSILON)).clamp(max=self.most)


def last_gradient(loss: Tensor, made: Reconstruction, last: nn.Conv2d) -> Float[Tensor, "3 c kh kw"]:
    """The gradient of `loss` with respect to the last convolution's weight, which is not asked for it.

    It follows from what the convolution read and from the gradient of what it made, and so does not care whether the
    weight is sharded (FSDP2) or its gradient waited for (DDP). float32.
    """
    (upstream,) = torch.autograd.grad(loss, made.pixels, retain_graph=True)
    features, upstream = made.features.detach().float(), upstream.float()
    stride, padding = cast(Any, (last.stride, last.padding))
    return conv2d_weight(features, last.weight.shape, upstream, stride, padding)


def entered(step: int, *, at: int, ramp: int) -> float:
    """The share of its weight that an adversary has at `step`: none before `at`, all of it `ramp` steps later."""
    return min(1.0, max(0, step - at + 1) / (ramp + 1))
