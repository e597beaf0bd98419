"""PSNR, SSIM and L1 between pictures and their reconstructions by an autoencoder."""

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

FIGURES = ("psnr", "ssim", "l1")


def reconstruction(x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> dict[str, Float[Tensor, "b"]]:
    """PSNR in dB, SSIM and mean absolute error of each picture `x` against `y`, both float [-1, 1].

    `x` is clamped as it would be when saved, and both are taken to [0, 1]: the data range is 1. The PSNR is of each
    picture (infinite for equal ones). SSIM has a Gaussian window, 11 wide with sigma 1.5 (Wang et al. 2004).
    """
    x, y = (x.float().clamp(-1, 1) + 1) / 2, (y.float() + 1) / 2
    ssim = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    assert isinstance(ssim, Tensor)
    return {
        "psnr": peak_signal_noise_ratio(x, y, data_range=1.0, dim=(1, 2, 3), reduction="none"),
        "ssim": ssim.reshape(len(x)),
        "l1": reduce((x - y).abs(), "b c h w -> b", "mean"),
    }


class ReconstructionMetric(Metric):
    """The means of all pictures' PSNR, SSIM and L1, with data range 1. The states are sums, so that processes add up.

    A mean of PSNRs is higher than the PSNR of the mean error.
    """

    total: Tensor
    n: Tensor
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(len(FIGURES), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> None:
        """Compare the reconstructions `x` with the pictures `y`, both float [-1, 1]."""
        figures = reconstruction(x, y)
        self.total += torch.stack([figures[name].double().sum() for name in FIGURES])
        self.n += len(x)

    def compute(self) -> dict[str, float]:
        """`psnr` in dB, `ssim` and `l1`; NaN before the first picture."""
        return dict(zip(FIGURES, (self.total / self.n).tolist(), strict=True))
