"""Which codes of a codebook are used, over many steps, and what becomes of those that are not."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from open_kandinsky.core.distributed import broadcast_from_first, gather_rows, sum_over_processes
from open_kandinsky.networks.quantizer import Codebook, perplexity_of

Draw = Callable[[], Float[Tensor, "codes c"]]


class Usage(nn.Module):
    """How often each code was used by all processes within a window of so many steps.

    One batch says little: 16,384 codes are more than the latents of 16 pictures. The counts are a buffer, the same on
    each process: a run that is resumed within a window, by any number of processes, goes on counting.
    """

    counts: Tensor

    def __init__(self, *, codes: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.register_buffer("counts", torch.zeros(codes, dtype=torch.long))

    def add(self, index: Int[Tensor, "b h w"]) -> None:
        self.counts += sum_over_processes(torch.bincount(index.flatten(), minlength=len(self.counts)))

    def figures(self) -> dict[str, Float[Tensor, ""]]:
        """Shares of the codes: `code_usage` by the perplexity, `codes_used` at least once."""
        most = self.counts.sum().clamp(min=1, max=len(self.counts))  # fewer latents than codes cannot use them all
        return {
            "code_usage": perplexity_of(self.counts) / most,
            "codes_used": (self.counts > 0).sum() / most,
        }


@runtime_checkable
class Revival(Protocol):
    """What happens to the codes at the end of a window; `draw` gives a latent for each."""

    def __call__(self, codebook: Codebook, counts: Int[Tensor, "codes"], draw: Draw) -> None: ...


class Never:
    """MoVQGAN's: a code that no latent is near to stays where it is."""

    def __call__(self, codebook: Codebook, counts: Int[Tensor, "codes"], draw: Draw) -> None:
        pass


class Restart:
    """Codes that were not used once become latents of the batch (random restarts of Jukebox, Dhariwal et al. 2020).

    Adam needs no telling: a code without a gradient for a window has no moments left.
    """

    def __call__(self, codebook: Codebook, counts: Int[Tensor, "codes"], draw: Draw) -> None:
        codebook.restart(counts == 0, draw())


def drawn(z: Float[Tensor, "b c h w"], codes: int) -> Float[Tensor, "codes c"]:
    """A latent for each code from the batches of all processes, the same on each; repeats where there are fewer."""
    flat = gather_rows(rearrange(z, "b c h w -> (b h w) c"))
    return flat[broadcast_from_first(torch.randint(len(flat), (codes,), device=z.device))]
