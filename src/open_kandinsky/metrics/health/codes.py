"""How many codes of a codebook are in use."""

import torch
from jaxtyping import Int
from torch import Tensor
from torchmetrics import Metric


class CodeUsage(Metric):
    """Counts each code over a whole set: within one batch a large codebook always looks unused."""

    counts: Tensor
    full_state_update = False

    def __init__(self, *, codes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(codes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, index: Int[Tensor, "..."]) -> None:
        self.counts += torch.bincount(index.flatten(), minlength=len(self.counts))

    def compute(self) -> dict[str, float]:
        """`codes_used`: the share used at least once. `code_perplexity`: exp of the entropy, from 1 to all codes."""
        p = self.counts.double() / self.counts.sum()
        used = (self.counts > 0).double().mean()
        return {"codes_used": float(used), "code_perplexity": float(torch.special.entr(p).sum().exp())}
