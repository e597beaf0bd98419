"""The CLIP score, how well pictures and texts agree. It is comparable only under the same CLIP, so name that."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric


def clip_score(image_emb: Float[Tensor, "b d"], text_emb: Float[Tensor, "b d"]) -> Float64[Tensor, "b"]:
    """The cosine of each picture and its text, in [-1, 1]: neither clipped at 0 nor multiplied by 2.5.

    Hessel et al. 2021 do both; papers that print 0.3 for a good picture do neither. Embeddings may have any length.
    """
    return F.cosine_similarity(image_emb.double(), text_emb.double(), dim=-1)


class CLIPScore(Metric):
    """The mean cosine over all pairs, with its standard error. The states are sums, so that processes add up."""

    total: Tensor
    squares: Tensor
    n: Tensor
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, image_emb: Float[Tensor, "b d"], text_emb: Float[Tensor, "b d"]) -> None:
        """Add a batch of pairs; the embeddings need not be normalised."""
        scores = clip_score(image_emb, text_emb)
        self.total += scores.sum()
        self.squares += scores.square().sum()
        self.n += len(scores)

    def compute(self) -> dict[str, float | int]:
        """The `mean`, its standard error `se` (NaN for fewer than 2 pairs), and the number of pairs `n`."""
        n = int(self.n)
        mean = float(self.total) / n if n else float("nan")
        scatter = max(float(self.squares) - n * mean**2, 0.0) if n > 1 else float("nan")
        return {"mean": mean, "se": (scatter / max(n - 1, 1) / max(n, 1)) ** 0.5, "n": n}
