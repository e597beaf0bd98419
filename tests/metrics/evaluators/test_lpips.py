"""LPIPS against torch-fidelity's, on one VGG16 of random weights."""

from pathlib import Path

import pytest
import torch
import torchmetrics
from fixtures.evaluators import photos
from torch_fidelity import sample_similarity_lpips
from torchvision.models import vgg16

from open_kandinsky.metrics.evaluators import LPIPSMetric

HEADS = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "vgg.pth"


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(0)
    return vgg16(weights=None)


@pytest.fixture(scope="module")
def lpips(vgg):
    return LPIPSMetric(state=vgg.state_dict())


def pair():
    return photos(2, 64, 80, seed=0), photos(2, 64, 80, seed=1)


def signed(pixels):
    return pixels.float() / 127.5 - 1


def test_torch_fidelity_says_the_same(vgg, lpips, monkeypatch):
    heads = torch.load(HEADS, map_location="cpu", weights_only=True)
    monkeypatch.setattr(sample_similarity_lpips, "load_state_dict_from_url", lambda *_, **__: heads)
    monkeypatch.setattr(sample_similarity_lpips, "torchvision_load_pretrained_vgg16", lambda: vgg)
    x, y = pair()
    theirs = sample_similarity_lpips.SampleSimilarityLPIPS("lpips-vgg16")(x, y)
    torch.testing.assert_close(lpips(signed(x), signed(y)), theirs, rtol=1e-4, atol=1e-6)
    assert theirs.min() > 1e-4


def test_a_picture_is_at_no_distance_from_itself_as_it_is_saved(lpips):
    x, _ = pair()
    white = torch.ones(1, 3, 64, 64)
    assert lpips(signed(x), signed(x)).tolist() == [0, 0]
    assert lpips(white + 3, white).tolist() == [0]


def test_it_stays_frozen(lpips):
    assert not any(module.training for module in lpips.train().modules())
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


def test_weights_of_another_network_are_refused(lpips, vgg):
    state = {name: value for name, value in vgg.state_dict().items() if name.startswith("features.")}
    for wrong in ({"a": torch.zeros(1)}, state | {"features.0.bias": torch.zeros(5)}):
        with pytest.raises(ValueError, match="not the weights of VGG16"):
            lpips.load(wrong)
