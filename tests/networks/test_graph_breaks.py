"""What is compiled is one graph: dynamo's count of breaks is 0, and the graph gives the same numbers."""

import pytest
import torch

from open_kandinsky.networks.condition import ImageCondition, TextImageCondition
from open_kandinsky.networks.movq import MoVQ
from open_kandinsky.networks.prior import DiffusionPrior, LinearPrior, ResidualPrior
from open_kandinsky.networks.unet import UNet

TEXT = {"image_dim": 6, "text_dim": 5}
B = 2


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def unet(condition):
    sizes = {"in_channels": 4, "out_channels": 8, "latent_channels": 4, "channels": 32, "multipliers": [1, 2]}
    return UNet(condition=condition, **sizes, blocks=1, attention_levels=[1], head_channels=16, context=12, emb=20)


def of_text():
    return TextImageCondition(image_dim=6, text_width=4, text_dim=5, image_tokens=3, context=12, emb=20)


def of_image():
    return ImageCondition(image_dim=6, image_tokens=3, context=12, emb=20)


def movq(quantise):
    sizes = {"channels": 32, "multipliers": [1, 2], "blocks": 1, "attention_levels": [1], "latent_channels": 4}
    return MoVQ(**sizes, codes=16, beta=0.25, quantise_latents=quantise)


CAPTION = (draw(B, 7, 4), draw(B, 5), torch.arange(7) < torch.tensor([[2], [7]]))
T = torch.tensor([3, 999])


def priors():
    made = DiffusionPrior(**TEXT, text_width=4, text_length=7, width=24, layers=2, heads=3)
    others = [LinearPrior(**TEXT), ResidualPrior(**TEXT, width=8, blocks=2)]
    return {type(network).__name__: network for network in (made, *others)}


def calls():
    """Name -> the function and what it is given."""
    found = {}
    for name, network in priors().items():
        found |= {f"{name}.prefix": (network.prefix, CAPTION)}
        found |= {name: (network, (draw(B, 6), T, network.prefix(*CAPTION)))}
    conditions = (draw(B, 6), draw(B, 7, 4), draw(B, 5))
    for condition in (of_text(), of_image()):
        network, name = unet(condition), type(condition).__name__
        found |= {f"UNet.context of {name}": (network.context, conditions)}
        found |= {f"UNet of {name}": (network, (draw(B, 4, 8, 8), T, network.context(*conditions)))}
    for quantise in (False, True):
        network = movq(quantise)
        found |= {f"MoVQ.encode, {quantise}": (network.encode, (draw(B, 3, 16, 16),))}
        found |= {f"MoVQ.decode, {quantise}": (network.decode, (draw(B, 4, 8, 8),))}
    return found


CALLS = calls()


@pytest.mark.filterwarnings("ignore")  # of torch's own tracing
@pytest.mark.parametrize("name", CALLS)
@torch.no_grad()
def test_one_graph(name):
    function, given = CALLS[name]
    torch._dynamo.reset()
    explained = torch._dynamo.explain(function)(*given)
    assert explained.graph_break_count == 0, explained.break_reasons
    torch._dynamo.reset()
    whole = torch.compile(function, fullgraph=True, backend="eager")(*given)
    for found, expected in zip(tensors(whole), tensors(function(*given)), strict=True):
        torch.testing.assert_close(found, expected)


def tensors(value):
    return [value] if isinstance(value, torch.Tensor) else [x for inner in value for x in tensors(inner)]
