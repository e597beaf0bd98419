"""How far a reconstruction is from its picture."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from open_kandinsky.core.errors import UserError


class PixelLoss(nn.Module):
    """Weighted absolute and squared error, absolute error of neighbours' differences, and a perceptual distance."""

    def __init__(self, *, l1: float, l2: float, edges: float, lpips: float, perceptual: nn.Module | None) -> None:
        super().__init__()
        if lpips > 0 and perceptual is None:
            raise UserError(f"lpips={lpips} weighs a distance that is not there: set perceptual, or lpips=0")
        self.l1, self.l2, self.edges, self.lpips = l1, l2, edges, lpips
        self.perceptual: Any = [perceptual]  # in a list: frozen, so out of the state dict

    def forward(self, x: Float[Tensor, "b 3 h w"], y: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        d = x - y
        loss = self.l1 * d.abs().mean() + self.l2 * d.square().mean()
        if self.edges > 0:
            loss = loss + self.edges * (d.diff(dim=2).abs().mean() + d.diff(dim=3).abs().mean())
        if self.lpips > 0:
            loss = loss + self.lpips * self.perceptual[0].to(x.device)(x, y)
        return loss
