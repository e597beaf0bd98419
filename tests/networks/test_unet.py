"""The U-Net, of any depth."""

import pytest
import torch
from torch import nn

from open_kandinsky.networks.condition import ImageCondition, TextImageCondition
from open_kandinsky.networks.unet import Context, UNet

B = 2


def unet(levels=2, blocks=1, attention_levels=(1,), in_channels=4, of_text=True):
    torch.manual_seed(0)
    if of_text:
        sizes = {"text_width": 5, "text_dim": 7, "image_tokens": 3}
        condition = TextImageCondition(image_dim=6, **sizes, context=12, emb=20)
    else:
        condition = ImageCondition(image_dim=6, image_tokens=3, context=12, emb=20)
    network = UNet(
        condition=condition,
        in_channels=in_channels,
        out_channels=8,
        latent_channels=4,
        channels=32,
        multipliers=[1, 2, 2, 3][:levels],
        blocks=blocks,
        attention_levels=attention_levels,
        head_channels=16,
        context=12,
        emb=20,
    )
    for p in network.parameters():  # the zero-initialised layers too
        if not p.any():
            nn.init.normal_(p, std=0.05)
    return network


def inputs(in_channels=4, b=B):
    g = torch.Generator().manual_seed(1)
    x_t, t = torch.randn(b, in_channels, 16, 8, generator=g), torch.arange(b) * 300
    return x_t, t, torch.randn(b, 6, generator=g), torch.randn(b, 9, 5, generator=g), torch.randn(b, 7, generator=g)


def test_context_computed_once_is_context_computed_each_time():
    network = unet()
    x_t, t, *condition = inputs()
    once = network.context(*condition)
    for step in range(3):
        assert network(x_t + step, t, once).equal(network(x_t + step, t, network.context(*condition)))


def test_context_has_one_entry_an_attention_of_image_tokens_and_words():
    network = unet(levels=3, blocks=2, attention_levels=(1, 2))
    context = network.context(*inputs()[2:])
    assert len(context.kv) == 2 * 2 + 1 + 2 * 3
    assert {kv.k.shape[2] for kv in context.kv} == {3 + 9}
    assert context.emb.shape == (B, 20)


def test_a_doubled_batch_is_two_batches():
    """As guidance calls it."""
    network = unet().double()
    x_t, t, *condition = (x.double() if x.is_floating_point() else x for x in inputs())
    other = [c + 1 for c in condition]
    doubled = network.context(*(torch.cat(pair) for pair in zip(condition, other, strict=True)))
    together = network(torch.cat([x_t, x_t]), torch.cat([t, t]), doubled)
    for half, alone in zip(together.chunk(2), (condition, other), strict=True):
        torch.testing.assert_close(half, network(x_t, t, network.context(*alone)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("of_text", [True, False])
def test_gradients_reach_every_parameter(of_text):
    network = unet(levels=3, of_text=of_text)
    x_t, t, *condition = inputs()
    network(x_t, t, network.context(*condition)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_every_condition_matters_and_the_time():
    network = unet()
    x_t, t, *condition = inputs()
    expected = network(x_t, t, network.context(*condition))
    assert not network(x_t, t + 1, network.context(*condition)).equal(expected)
    for i in range(3):
        other = [c + (i == j) for j, c in enumerate(condition)]
        assert not network(x_t, t, network.context(*other)).equal(expected)


def test_image_condition_does_not_look_at_text():
    network = unet(of_text=False)
    _, _, image_emb, tokens, text_emb = inputs()
    with_text, without = network.context(image_emb, tokens, text_emb), network.context(image_emb)
    assert with_text.emb.equal(without.emb)
    assert isinstance(without, Context)


def test_channels_last_gives_the_same():
    """In float64: another order of summation is all that may differ."""
    network = unet(levels=3).double()
    x_t, t, *condition = (x.double() if x.is_floating_point() else x for x in inputs())
    expected = network(x_t, t, network.context(*condition))
    network, layouts = network.to(memory_format=torch.channels_last), []
    for block in network.units():
        block.register_forward_hook(lambda _, __, h: layouts.append(h.is_contiguous(memory_format=torch.channels_last)))
    out = network(x_t, t, network.context(*condition))
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    assert layouts and all(layouts)  # maps follow weights


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_any_depth_runs(levels, blocks):
    """Every skip is used once, and the map keeps its size."""
    network = unet(levels, blocks, attention_levels=range(1, levels), in_channels=9)
    assert len(network.down) == levels * (blocks + 1) - 1
    assert len(network.up) == levels * (blocks + 1)
    x_t, t, *condition = inputs(in_channels=9, b=1)
    assert network(x_t, t, network.context(*condition)).shape == (1, 8, 16, 8)


def test_starts_at_nought():
    """conv_out is zero-initialised: an untrained decoder predicts no noise, and its variance in the middle."""
    x_t, t, *condition = inputs()
    fresh = UNet(
        condition=ImageCondition(image_dim=6, image_tokens=3, context=12, emb=20),
        in_channels=4,
        out_channels=8,
        latent_channels=4,
        channels=32,
        multipliers=[1],
        blocks=1,
        attention_levels=[],
        head_channels=16,
        context=12,
        emb=20,
    )
    assert not fresh(x_t, t, fresh.context(*condition)).any()
