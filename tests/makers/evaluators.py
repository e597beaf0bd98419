"""Evaluation networks of random weights, ours and other people's, and pictures for them."""

import torch
from torch.nn import functional as F
from torch_fidelity import feature_extractor_inceptionv3

from open_kandinsky.metrics.evaluators import Inception, tf1


def photos(n, h, w, seed=0):
    """uint8 pictures that are smooth, as photographs are: to a network, all noise looks the same."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, 9, 7, generator=generator) * 300 - 20
    return F.interpolate(x, size=(h, w), mode="bicubic", antialias=True).clamp(0, 255).to(torch.uint8)


def inception_state():
    """Random weights whose batch norms have seen pictures, so that features differ between pictures."""
    torch.manual_seed(0)
    network = Inception(state=None, input_path=tf1)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        torch.nn.init.uniform_(norm.weight, 0.8, 1.2)
        torch.nn.init.uniform_(norm.bias, -0.2, 0.3)
        norm.momentum = 1.0
        norm.train()
    network(photos(4, 299, 299, seed=1))
    return network.state_dict()


def torch_fidelity_inception(state, monkeypatch):
    """Its extractor, given these weights where it would fetch."""
    monkeypatch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: state)
    return feature_extractor_inceptionv3.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
