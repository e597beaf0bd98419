"""What is known of a picture before it is drawn: inpainting's part that stays."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from open_kandinsky.diffusion.denoise import Denoise, keep_known


@runtime_checkable
class Seen(Protocol):
    """The known as one network takes it: in its input, and in the x_0 that its output means."""

    def see(self, x_t: Tensor) -> Tensor: ...
    def blend(self, denoise: Denoise) -> Denoise: ...


class Nothing:
    """For a network that draws without a picture, as priors do."""

    def see(self, x_t: Tensor) -> Tensor:
        return x_t

    def blend(self, denoise: Denoise) -> Denoise:
        return denoise


NOTHING = Nothing()


@dataclass(frozen=True)
class Known:
    """Latents (MoVQ's scale) and where they stay: `keep` is 1 where known, 0 where to be painted."""

    z: Float[Tensor, "b c h w"]
    keep: Float[Tensor, "b 1 h w"]

    @classmethod
    def nothing(cls, like: Float[Tensor, "b c h w"]) -> "Known":
        """All to be painted."""
        return cls(torch.zeros_like(like), torch.zeros_like(like[:, :1]))

    def seen_by(self, network: Any) -> "SeenLatent":
        """ValueError for a U-Net that is neither a text-to-image nor an inpainting one, by its input's channels."""
        channels = network.conv_in.in_channels
        own = self.z.shape[1]
        if channels not in (own, 2 * own + 1):
            raise ValueError(
                f"the decoder's U-Net reads {channels} channels: for latents of {own} it should be {own} "
                f"(text to image) or {2 * own + 1} (inpainting: x_t, known latent, mask)"
            )
        z = network.standardise(self.z)
        return SeenLatent(z, self.keep, torch.cat([z * self.keep, self.keep], dim=1)[:, : channels - own])

    def restore(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The known exactly as it was: some samplers leave a little noise on it, others rescale it."""
        return torch.lerp(z, self.z, self.keep)


@dataclass(frozen=True)
class SeenLatent:
    """Standardised; `beside` is [z where known, keep] for an inpainting U-Net, and no channel for any other."""

    z: Float[Tensor, "b c h w"]
    keep: Float[Tensor, "b 1 h w"]
    beside: Float[Tensor, "b extra h w"]

    def see(self, x_t: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c_in h w"]:
        """`x_t` is a batch, or for guidance twice that."""
        copies = len(x_t) // len(self.beside)
        return torch.cat([x_t, self.beside.repeat(copies, 1, 1, 1)], dim=1)

    def blend(self, denoise: Denoise) -> Denoise:
        return keep_known(denoise, self.z, self.keep)
