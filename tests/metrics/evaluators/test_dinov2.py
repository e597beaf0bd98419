"""DINOv2 of a few random weights against transformers' and torch-fidelity's, and the full size counted."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from transformers import Dinov2Config, Dinov2Model

from open_kandinsky.metrics import evaluators
from open_kandinsky.metrics.evaluators import DINOv2, load, positions, vit_large

LAYERS = {
    "norm1": "norm1",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "norm2": "norm2",
    "mlp": "mlp",
    "layer_scale2.lambda1": "ls2.gamma",
}


def small(size=224):
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=size, patch_size=14, embed_dim=32, depth=2, num_heads=2, init_values=0.5, num_classes=0
    )


def published(network, grid):
    """A state dict as DINOv2's authors publish it, for another number of positions."""
    generator = torch.Generator().manual_seed(1)
    state = {name: torch.randn(value.shape, generator=generator) / 4 for name, value in network.state_dict().items()}
    state["pos_embed"] = torch.randn(1, 1 + grid**2, 32, generator=generator) / 4
    return state | {"mask_token": torch.zeros(1, 32)}


def test_transformers_dinov2_gives_the_same():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "layer_norm_eps": 1e-6}
    theirs = Dinov2Model(Dinov2Config(**sizes, image_size=224, patch_size=14)).eval()
    network = small()
    state = published(network, grid=16)
    load(network, state)
    theirs.load_state_dict(as_transformers(state))
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), theirs(x).pooler_output, rtol=1e-5, atol=1e-5)


def as_transformers(state):
    """The same tensors under transformers' names, queries, keys and values apart."""
    made = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": state["mask_token"],
        "embeddings.position_embeddings": state["pos_embed"],
    }
    for kind in ("weight", "bias"):
        made[f"embeddings.patch_embeddings.projection.{kind}"] = state[f"patch_embed.proj.{kind}"]
        made[f"layernorm.{kind}"] = state[f"norm.{kind}"]
        for i in (0, 1):
            parts = state[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
                made[f"encoder.layer.{i}.attention.{name}.{kind}"] = part
    for name, value in state.items():
        i, _, rest = name.removeprefix("blocks.").partition(".")
        for theirs, ours in LAYERS.items():
            if name.startswith("blocks.") and rest.startswith(ours):
                made[f"encoder.layer.{i}.{theirs}{rest.removeprefix(ours)}"] = value
    return made


def test_torch_fidelity_prepares_the_same_input(monkeypatch):
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    network = small().eval()
    load(network, published(network, grid=16))
    monkeypatch.setattr(torch.hub, "load", lambda *_, **__: network)
    theirs = FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 300, 400), dtype=torch.uint8, generator=generator)
    ours = DINOv2(network=network, resized=evaluators.resize_tf1)
    torch.testing.assert_close(ours(pixels), theirs(pixels)[0], rtol=1e-5, atol=1e-5)
    clean = DINOv2(network=network, resized=evaluators.resize_clean)(pixels)
    assert clean.sub(ours(pixels)).norm() > 1e-3 * clean.norm()


def test_positions_of_another_size_lie_where_dinov2_takes_them():
    """Of a ramp they are the places themselves, but for torch's cubic, which bends a straight line by 0.05."""
    ramp = torch.arange(37.0).expand(37, 37)
    given = torch.cat([torch.full((1, 1, 2), 7.0), torch.stack([ramp.T, ramp], -1).reshape(1, -1, 2)], 1)
    own, square = positions(given, 16).split([1, 256], 1)
    places = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    inner = square.reshape(16, 16, 2)[2:-2, 2:-2]
    assert own.unique().item() == 7
    torch.testing.assert_close(inner[..., 1], places[2:-2].expand(12, 12), rtol=0, atol=0.06)
    torch.testing.assert_close(inner[..., 0], places[2:-2].expand(12, 12).T, rtol=0, atol=0.06)


def test_weights_for_another_size_in_pixels_fit_and_another_networks_do_not():
    network = small()
    state = published(network, grid=37)
    load(network, state)
    torch.testing.assert_close(network.pos_embed.detach(), positions(state["pos_embed"], 16))
    for wrong in ({"a": torch.zeros(1)}, state | {"norm.weight": torch.zeros(5)}):
        with pytest.raises(ValueError, match="not the weights of DINOv2"):
            load(network, wrong)


def test_the_large_one_has_as_many_weights_as_transformers():
    config = Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=224, patch_size=14)
    with torch.device("meta"):
        ours, theirs = vit_large(), Dinov2Model(config)
    mask_token = 1024
    assert count(ours) == count(theirs) - mask_token
    assert ours.num_features == 1024


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())
