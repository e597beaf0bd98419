"""LPIPS, how far two pictures are apart to VGG16's eyes (Zhang et al. 2018), from a file and without a network."""

from collections.abc import Mapping

from einops import rearrange
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS

from open_kandinsky.core.errors import UserError


class LPIPS(nn.Module):
    """Frozen, and always in eval mode. `state` is torchvision's published VGG16; None leaves it random, for tests.

    By torchmetrics, which brings the learned weights of the layers along (version 0.1, the very file that
    torch-fidelity fetches). Raises ValueError for weights of another network.
    """

    def __init__(self, *, state: Mapping[str, Tensor] | None) -> None:
        super().__init__()
        self.net = _LPIPS(pretrained=True, net="vgg", pnet_rand=True)
        if state is not None:
            self.load(state)
        self.requires_grad_(False).eval()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The convolutions of VGG16; torchmetrics has them in five slices, each under its number in `features`."""
        numbered = {name.removeprefix("features."): value for name, value in state.items() if "features." in name}
        try:
            names = {name: numbered[name.partition(".")[2]] for name in self.net.net.state_dict()}
            self.net.net.load_state_dict(names)
        except (KeyError, RuntimeError) as error:
            told = "these are not the weights of VGG16, as torchvision publishes them"
            raise UserError(f"{told}; {' '.join(str(error).split())[:200]}") from error

    def train(self, mode: bool = True) -> "LPIPS":
        return super().train(False)

    def forward(self, x: Float[Tensor, "b 3 h w"], y: Float[Tensor, "b 3 h w"]) -> Float32[Tensor, "b"]:
        """The distance of each picture in `x` from its own in `y`, both float [-1, 1], at the size that they have.

        `x` is clamped as it would be when saved.
        """
        return rearrange(self.net(x.float().clamp(-1, 1), y.float()), "b 1 1 1 -> b")
