"""An adversary's learning rate, whose steps are counted from when it enters.

How much an autoencoder listens to its adversary.

What keeps an adversary from winning: terms of its own loss, as modules, so that what they remember is saved.
"""

from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from open_kandinsky.core.distributed import mean_over_processes
from open_kandinsky.networks.movq import Reconstruction
from open_kandinsky.stages.optim import MakeSchedule


def following_schedule(optimizer: Optimizer, *, schedule: MakeSchedule, at: int) -> LRScheduler:
    """The learning rates of `schedule` from its step `at` on, for an adversary that enters in the middle of a run.

    With the step at which it enters, it learns at the autoencoder's rate, which falls to the end of the run. With 0 the
    schedule begins when the adversary enters, as one that only rises should.
    """
    made = schedule(optimizer)
    if at == 0:
        return made
    assert isinstance(made, LambdaLR), "ours all are"
    factor = made.lr_lambdas[0]
    return LambdaLR(optimizer, lambda step: factor(step + at))


EPSILON = 1e-4  # VQGAN's: an adversary that says the same everywhere weighs little, and not infinitely much


@runtime_checkable
class AdversaryWeight(Protocol):
    """The weight of `fooling` beside `quality`, two losses of the same reconstruction."""

    def __call__(self, quality: Tensor, fooling: Tensor, made: Reconstruction, last: nn.Conv2d) -> float | Tensor: ...


class ConstantWeight:
    """The same at all times: MoVQGAN's, 0.1."""

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def __call__(self, quality: Tensor, fooling: Tensor, made: Reconstruction, last: nn.Conv2d) -> float:
        return self.weight


class AdaptiveWeight:
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


def adversary_share(step: int, *, at: int, ramp: int) -> float:
    """The share of its weight that an adversary has at `step`: none before `at`, all of it `ramp` steps later."""
    return min(1.0, max(0, step - at + 1) / (ramp + 1))


class DiscriminatorBatch(NamedTuple):
    """One meeting of both sides at a step: real pictures, and the scores that they and the made ones got."""

    step: int
    pixels: Float[Tensor, "b 3 h w"]
    real: Float[Tensor, "b 1 ph pw"]
    fake: Float[Tensor, "b 1 ph pw"]


class R1(nn.Module):
    """weight / 2 E |grad D(x)|^2 at real pictures x (Mescheder et al. 2018, eq. 9), at each `every`-th step.

    Then it counts `every` times (Karras et al. 2020, appendix B). D has a score for each patch: their gradients'
    squares are averaged over patches, of which those that overlap count together. So `weight` means the same at any
    resolution.
    """

    def __init__(self, *, weight: float, every: int) -> None:
        super().__init__()
        self.weight, self.every = weight, every

    def forward(self, discriminator: nn.Module, bout: DiscriminatorBatch) -> Float[Tensor, ""] | None:
        """None at the steps between, so that no figure is logged for them."""
        if (bout.step + 1) % self.every != 0:  # as loggers count, so that every few of its figures are written down
            return None
        return self.every * self.weight / 2 * squared_gradient_norm(discriminator, bout.pixels)


def squared_gradient_norm(discriminator: nn.Module, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """E |grad D(x)|^2, a mean over pictures and patches, past autocast, itself differentiable."""
    with torch.autocast(pixels.device.type, enabled=False):
        x = pixels.detach().requires_grad_()
        scores = discriminator(x)
        (slope,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return reduce(slope.square(), "b c h w -> b", "sum").mean() / scores[0].numel()


class LeCam(nn.Module):
    """weight (E |D(real) - a_fake|^2 + E |D(fake) - a_real|^2) (Tseng et al. 2021), for few data.

    The a are moving averages of the scores of each side, plain means until they are as long as `decay` says. They keep
    D near itself: it neither saturates nor runs away. They are buffers, and so in the checkpoint.
    """

    real: Tensor
    fake: Tensor
    seen: Tensor

    def __init__(self, *, weight: float, decay: float) -> None:
        super().__init__()
        self.weight, self.decay = weight, decay
        for side in ("real", "fake"):
            self.register_buffer(side, torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, discriminator: nn.Module, bout: DiscriminatorBatch) -> Float[Tensor, ""]:
        self.follow(bout)
        return self.weight * ((bout.real - self.fake).square().mean() + (bout.fake - self.real).square().mean())

    @torch.no_grad()
    def follow(self, bout: DiscriminatorBatch) -> None:
        self.seen += 1
        new = (1 / self.seen).clamp(min=1 - self.decay)
        for average, scores in ((self.real, bout.real), (self.fake, bout.fake)):
            average.lerp_(mean_over_processes(scores.to(average.dtype).mean()), new)
