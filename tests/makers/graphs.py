"""Each network of a few weights, and how many graphs dynamo makes of what it does: as a program, in JSON.

Shapes are not checked here: what checks them is not to be compiled.
"""

import json

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


def tensors(value):
    return [value] if isinstance(value, torch.Tensor) else [x for inner in value for x in tensors(inner)]


@torch.no_grad()
def traced(function, given):
    """Breaks of the graph, and how far its numbers are from the function's."""
    torch._dynamo.reset()
    breaks = max(0, torch._dynamo.explain(function)(*given).graph_break_count)  # -1: nothing to compile
    torch._dynamo.reset()
    whole = torch.compile(function, fullgraph=True, backend="eager")(*given)
    pairs = zip(tensors(whole), tensors(function(*given)), strict=True)
    return {"breaks": breaks, "error": max(float((a.float() - b.float()).abs().max()) for a, b in pairs)}


def main():
    torch.set_num_threads(1)
    print(json.dumps({name: traced(*call) for name, call in calls().items()}))


if __name__ == "__main__":
    main()
