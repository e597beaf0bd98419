"""What keeps an adversary from winning: terms of its own loss, as modules, so that what they remember is saved."""

from typing import NamedTuple

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn

from open_kandinsky.core.distributed import mean_over_processes


class Bout(NamedTuple):
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

    def forward(self, discriminator: nn.Module, bout: Bout) -> Float[Tensor, ""] | None:
        """None at the steps between, so that no figure is logged for them."""
        if (bout.step + 1) % self.every != 0:  # as loggers count, so that every few of its figures are written down
            return None
        return self.every * self.weight / 2 * steepness(discriminator, bout.pixels)


def steepness(discriminator: nn.Module, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
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

    def forward(self, discriminator: nn.Module, bout: Bout) -> Float[Tensor, ""]:
        self.follow(bout)
        return self.weight * ((bout.real - self.fake).square().mean() + (bout.fake - self.real).square().mean())

    @torch.no_grad()
    def follow(self, bout: Bout) -> None:
        self.seen += 1
        new = (1 / self.seen).clamp(min=1 - self.decay)
        for average, scores in ((self.real, bout.real), (self.fake, bout.fake)):
            average.lerp_(mean_over_processes(scores.to(average.dtype).mean()), new)
