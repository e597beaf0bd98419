"""What a network predicts (x_0, eps or v), and how x_0 is computed from its output.

One object per choice, so that losses, guidance and samplers need no flag: they only see x_0.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from open_kandinsky.diffusion.process import broadcast_to, snr, x_0_from_eps


class Denoised(NamedTuple):
    """An estimate of x_0 and, from networks that predict one, where the step's log variance lies between its bounds."""

    x_0: Tensor
    variance_frac: Tensor | None  # 0 at log(posterior variance), 1 at log(beta); guided-diffusion's `frac`


@runtime_checkable
class Parameterisation(Protocol):
    """Between what a network predicts and x_0. `alpha_bar` has one entry an example."""

    def target(self, x_0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
        """What the network should predict."""
        ...

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """The prediction and, where the network has one, `variance_frac`."""
        ...

    def x_0(self, prediction: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """The estimate of x_0."""
        ...

    def x_0_weight(self, alpha_bar: Tensor) -> Tensor:
        """The squared error of the prediction that one unit of squared error in x_0 makes."""
        ...


def read(p: Parameterisation, output: Tensor, x_t: Float[Tensor, "b ..."], alpha_bar: Float[Tensor, "b"]) -> Denoised:
    """A network's output as an estimate of x_0, in x_t's precision."""
    prediction, variance_frac = p.split(output.to(x_t.dtype))
    return Denoised(p.x_0(prediction, x_t, alpha_bar), variance_frac)


class MeanOnly:
    """The network's output is the prediction and nothing else."""

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        return output, None


class X0(MeanOnly):
    """The clean signal itself, as Kandinsky's prior."""

    def target(self, x_0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
        return x_0

    def x_0(self, prediction: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        return prediction

    def x_0_weight(self, alpha_bar: Tensor) -> Tensor:
        return alpha_bar.new_ones(alpha_bar.shape)


class Eps(MeanOnly):
    """The noise (Ho et al. 2020)."""

    def target(self, x_0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
        return eps

    def x_0(self, prediction: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        return x_0_from_eps(x_t, prediction, alpha_bar)

    def x_0_weight(self, alpha_bar: Tensor) -> Tensor:
        return snr(alpha_bar)


class V(MeanOnly):
    """v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022)."""

    def target(self, x_0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
        return broadcast_to(alpha_bar.sqrt(), x_0) * eps - broadcast_to((1 - alpha_bar).sqrt(), x_0) * x_0

    def x_0(self, prediction: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        return broadcast_to(alpha_bar.sqrt(), x_t) * x_t - broadcast_to((1 - alpha_bar).sqrt(), x_t) * prediction

    def x_0_weight(self, alpha_bar: Tensor) -> Tensor:
        return 1 + snr(alpha_bar)


class LearnedRange:
    """One of the above with a learned variance: twice the channels, the second half from -1 to 1 between the bounds.

    With Eps, Kandinsky's decoder (Nichol & Dhariwal 2021, eq. 15).
    """

    def __init__(self, mean: Parameterisation) -> None:
        self.mean = mean

    def target(self, x_0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
        return self.mean.target(x_0, eps, alpha_bar)

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        prediction, variance = output.chunk(2, dim=1)
        return prediction, (variance + 1) / 2

    def x_0(self, prediction: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        return self.mean.x_0(prediction, x_t, alpha_bar)

    def x_0_weight(self, alpha_bar: Tensor) -> Tensor:
        return self.mean.x_0_weight(alpha_bar)


class UnusedRange:
    """As LearnedRange, but the predicted variance is ignored: steps have the posterior's variance.

    diffusers samples Kandinsky 2.2's decoder like this, and no other code was published for it.
    """

    def __init__(self, mean: Parameterisation) -> None:
        self.target, self.x_0, self.x_0_weight = mean.target, mean.x_0, mean.x_0_weight

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        return output.chunk(2, dim=1)[0], None
