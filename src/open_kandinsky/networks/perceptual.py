"""LPIPS, the learned perceptual distance (Zhang et al. 2018), by torchmetrics."""

from jaxtyping import Float
from torch import Tensor, nn

from open_kandinsky.core.errors import UserError


class LPIPS(nn.Module):
    """Distance of VGG features with learned weights, frozen.

    Downloads torchvision's VGG16 weights if they are not in its cache; ValueError without a network.
    """

    def __init__(self) -> None:
        super().__init__()
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        try:
            whole = LearnedPerceptualImagePatchSimilarity(net_type="vgg")
        except OSError as error:
            raise UserError(
                f"the perceptual loss needs torchvision's VGG16 weights, and they cannot be fetched ({error}): put "
                "vgg16-397923af.pth into $TORCH_HOME/hub/checkpoints, or train without it by "
                "stage.pixel_loss.lpips=0 stage.pixel_loss.perceptual=null"
            ) from error
        self.net = whole.net.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "LPIPS":
        return super().train(False)

    def forward(self, x: Float[Tensor, "b 3 h w"], y: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        """The mean distance of images in [-1, 1]."""
        return self.net(x, y).mean()
