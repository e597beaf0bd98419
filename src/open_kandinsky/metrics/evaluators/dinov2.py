"""DINOv2's features of pictures, for the Frechet distance of Stein et al. 2023. It is not called FID."""

import math
from collections.abc import Callable, Mapping

import torch
from einops import rearrange
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from open_kandinsky.core.errors import UserError

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of [0, 1]
Resize = Callable[[UInt8[Tensor, "b 3 h w"], int], Float32[Tensor, "b 3 s s"]]


class DINOv2(nn.Module):
    """Frozen, and always in eval mode: normalised class tokens of `network`, at 224 px.

    torch-fidelity fetches code and weights from the network each time and refuses a weights file, so the transformer
    is timm's. `resized` is `resize.tf1` as in torch-fidelity, or `resize.clean` as in dgm-eval's clean form.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, network: nn.Module, resized: Resize) -> None:
        super().__init__()
        self.network = network
        self.resized = resized
        self.register_buffer("mean", rearrange(255 * torch.tensor(MEAN), "c -> c 1 1"), persistent=False)
        self.register_buffer("std", rearrange(255 * torch.tensor(STD), "c -> c 1 1"), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "DINOv2":
        return super().train(False)

    def forward(self, pixels: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, "b d"]:
        """Of uint8 pictures of any one size; 1024 numbers each for ViT-L/14."""
        return self.network((self.resized(pixels, SIZE) - self.mean) / self.std).float()


def vit_large() -> nn.Module:
    """ViT-L/14 for 224 px, without a head, under the names of the published weights."""
    import timm

    return timm.create_model("vit_large_patch14_dinov2", pretrained=False, img_size=SIZE, num_classes=0)


def load(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Published weights into a network for any size in pixels. Raises ValueError where they are another network's."""
    state = {name: value for name, value in state.items() if name != "mask_token"}
    try:
        grid = math.isqrt(network.get_parameter("pos_embed").shape[1] - 1)
        state["pos_embed"] = positions(state["pos_embed"], grid)
        network.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        told = "these are not the weights of DINOv2 that were asked for"
        raise UserError(f"{told}; {' '.join(str(error).split())[:200]}") from error


def positions(pos_embed: Float[Tensor, "1 n d"], grid: int) -> Float[Tensor, "1 m d"]:
    """Embeddings of a square of positions, after the class token's, for a square of `grid` x `grid`.

    As DINOv2's code does it: bicubic, not antialiased, by a factor that is 0.1 of a position too large. timm leaves
    the 0.1 out and antialiases, which gives other features.
    """
    own, old = pos_embed[:, :1], math.isqrt(pos_embed.shape[1] - 1)
    if old == grid:
        return pos_embed
    square = rearrange(pos_embed[:, 1:], "1 (h w) d -> 1 d h w", h=old)
    factor = (grid + 0.1) / old
    square = F.interpolate(square.float(), scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([own, rearrange(square, "1 d h w -> 1 (h w) d").to(own.dtype)], 1)
