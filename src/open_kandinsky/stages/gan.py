"""Adversarial training of the autoencoder: the discriminator's learning rate, its weight, and its regularisation.

The weight is that of the generator's adversarial loss beside its reconstruction loss. The penalties are terms of the
discriminator's loss, as modules: their buffers are saved with the stage.
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


EPSILON = 1e-4  # VQGAN's, added to the denominator of the adaptive weight


@runtime_checkable
class AdversaryWeight(Protocol):
    """The weight of the generator's adversarial loss `gan` beside `quality`, its reconstruction loss."""

    def __call__(
        self, quality: Tensor, gan: Tensor, reconstruction: Reconstruction, last: nn.Conv2d
    ) -> float | Tensor: ...


class ConstantWeight:
    """A constant; MoVQGAN's is 0.1."""

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def __call__(self, quality: Tensor, gan: Tensor, reconstruction: Reconstruction, last: nn.Conv2d) -> float:
        return self.weight


class AdaptiveWeight:
    """`weight` times |grad quality| / |grad gan| at the decoder's last layer (VQGAN, Esser et al. 2021, eq. 7).

    So the adversarial gradient is `weight` times as long as the reconstruction's, whatever either loss is scaled by.
    The ratio is clamped to `most`: VQGAN's 10,000 bounds nothing in practice, and lets the ratio explode when the
    adversarial gradient vanishes. The gradients of both losses with respect to the pixels are computed a second time.
    """

    def __init__(self, *, weight: float, most: float) -> None:
        self.weight, self.most = weight, most

    def __call__(
        self, quality: Tensor, gan: Tensor, reconstruction: Reconstruction, last: nn.Conv2d
    ) -> Float[Tensor, ""]:
        gradients = (last_gradient(loss, reconstruction, last) for loss in (quality, gan))
        quality_norm, gan_norm = (mean_over_processes(gradient).norm() for gradient in gradients)
        return self.weight * (quality_norm / (gan_norm + EPSILON)).clamp(max=self.most)


def last_gradient(loss: Tensor, reconstruction: Reconstruction, last: nn.Conv2d) -> Float[Tensor, "3 c kh kw"]:
    """The gradient of `loss` with respect to the last convolution's weight, in float32.

    It is computed from the convolution's input and the gradient of its output, not by autograd from the weight, which
    may be sharded (FSDP2) or have hooks that wait for other processes (DDP).
    """
    (upstream,) = torch.autograd.grad(loss, reconstruction.pixels, retain_graph=True)
    features, upstream = reconstruction.features.detach().float(), upstream.float()
    stride, padding = cast(Any, (last.stride, last.padding))
    return conv2d_weight(features, last.weight.shape, upstream, stride, padding)


def adversary_share(step: int, *, at: int, ramp: int) -> float:
    """The factor of the adversarial loss's weight at `step`: 0 before `at`, then linear to 1 at `at + ramp`."""
    return min(1.0, max(0, step - at + 1) / (ramp + 1))


class DiscriminatorBatch(NamedTuple):
    """A discriminator step's real pictures, and the scores per patch of these and of their reconstructions."""

    step: int
    pixels: Float[Tensor, "b 3 h w"]  # real, in [-1, 1]
    real: Float[Tensor, "b 1 ph pw"]
    fake: Float[Tensor, "b 1 ph pw"]


class R1(nn.Module):
    """weight / 2 E |grad D(x)|^2 at real pictures x (Mescheder et al. 2018, eq. 9), at each `every`-th step.

    It is multiplied by `every` then (lazy regularisation, Karras et al. 2020, appendix B). D has a score per patch: the
    squared gradient of their sum is divided by their number, so that `weight` means the same at any resolution.
    """

    def __init__(self, *, weight: float, every: int) -> None:
        super().__init__()
        self.weight, self.every = weight, every

    def forward(self, discriminator: nn.Module, batch: DiscriminatorBatch) -> Float[Tensor, ""] | None:
        """None at the steps between, so that no figure is logged for them."""
        if (batch.step + 1) % self.every != 0:  # loggers count so too, and so log a step that has the figure
            return None
        return self.every * self.weight / 2 * squared_gradient_norm(discriminator, batch.pixels)


def squared_gradient_norm(discriminator: nn.Module, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """E |grad D(x)|^2, a mean over pictures and patches, differentiable, with autocast off."""
    with torch.autocast(pixels.device.type, enabled=False):
        x = pixels.detach().requires_grad_()
        scores = discriminator(x)
        (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return reduce(gradient.square(), "b c h w -> b", "sum").mean() / scores[0].numel()


class LeCam(nn.Module):
    """weight (E |D(real) - a_fake|^2 + E |D(fake) - a_real|^2) (Tseng et al. 2021), for few data.

    a_real and a_fake are moving averages of D's scores: means of all steps until 1 / steps < 1 - decay, exponential
    from then on. They are buffers, and so in the checkpoint.
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

    def forward(self, discriminator: nn.Module, batch: DiscriminatorBatch) -> Float[Tensor, ""]:
        self.update(batch)
        return self.weight * ((batch.real - self.fake).square().mean() + (batch.fake - self.real).square().mean())

    @torch.no_grad()
    def update(self, batch: DiscriminatorBatch) -> None:
        self.seen += 1
        new = (1 / self.seen).clamp(min=1 - self.decay)
        for average, scores in ((self.real, batch.real), (self.fake, batch.fake)):
            average.lerp_(mean_over_processes(scores.to(average.dtype).mean()), new)
