"""Mean and standard deviation of a stream of vectors, in float64."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


class Moments:
    """Streaming and mergeable: each batch is centred on its own mean (Chan et al. 1979), so no large sums cancel."""

    def __init__(self, *, dim: int) -> None:
        self.count = 0
        self.mean: Float[Tensor, " d"] = torch.zeros(dim, dtype=torch.float64)
        self.squares: Float[Tensor, " d"] = torch.zeros(dim, dtype=torch.float64)

    def update(self, x: Shaped[Tensor, "b d"]) -> None:
        """Adds rows of any float type."""
        if len(x) == 0:
            return
        batch = Moments(dim=x.shape[1])
        x = x.to("cpu", torch.float64)
        batch.count, batch.mean = len(x), x.mean(0)
        batch.squares = (x - batch.mean).square().sum(0)
        self.merge(batch)

    def merge(self, other: "Moments") -> None:
        """Adds what another accumulator has seen."""
        count = self.count + other.count
        if count == 0:
            return
        gap = other.mean - self.mean
        self.squares = self.squares + other.squares + gap.square() * (self.count * other.count / count)
        self.mean = self.mean + gap * (other.count / count)
        self.count = count

    @property
    def std(self) -> Float[Tensor, " d"]:
        """Of the population (divided by the count), float64."""
        return (self.squares / self.count).sqrt()
