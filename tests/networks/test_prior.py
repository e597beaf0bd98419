"""The prior computes its prefix once: the same as the whole causal transformer at every step."""

import math

import pytest
import torch

from open_kandinsky.networks.blocks import Standardise, sinusoid
from open_kandinsky.networks.prior import DiffusionPrior, LinearPrior, NoPrior, ResidualPrior

B, LENGTH, WIDTH, HEADS = 3, 7, 24, 3


@pytest.fixture
def prior():
    torch.manual_seed(0)
    sizes = {"image_dim": 6, "text_dim": 5, "text_width": 4, "text_length": LENGTH}
    return DiffusionPrior(**sizes, width=WIDTH, layers=3, heads=HEADS).double()


@pytest.fixture
def caption():
    g = torch.Generator().manual_seed(1)
    mask = torch.arange(LENGTH) < torch.tensor([[2], [7], [4]])
    return torch.randn(B, LENGTH, 4, generator=g).double(), torch.randn(B, 5, generator=g).double(), mask


def x_t():
    return torch.randn(B, 6, generator=torch.Generator().manual_seed(2)).double(), torch.tensor([0, 400, 999])


def plain(prior, x_t, t, tokens, emb, mask):
    """All positions at once, attention written out with a softmax over an additive mask."""
    last = [prior.text_emb(emb), prior.time(t), prior.x_t(x_t), prior.readout.expand(B, -1)]
    x = torch.cat([prior.text_tokens(tokens), torch.stack(last, dim=1)], dim=1) + prior.position
    n = LENGTH + 4
    seen = torch.cat([mask, torch.ones(B, 4, dtype=torch.bool)], dim=1)[:, None] & torch.ones(n, n).tril().bool()
    bias = torch.where(seen, 0.0, -torch.inf).double()[:, None]
    for layer in prior.layers:
        x = x + attend(layer.attention, layer.norm_attention(x), bias)
        x = x + layer.mlp(layer.norm_mlp(x))
    return prior.out(prior.norm_out(x))[:, -1]


def attend(attention, x, bias):
    q, k, v = (each.unflatten(2, (HEADS, -1)).transpose(1, 2) for each in attention.qkv(x).chunk(3, dim=2))
    weight = (q @ k.transpose(2, 3) / (WIDTH / HEADS) ** 0.5 + bias).softmax(-1)
    return attention.out((weight @ v).transpose(1, 2).flatten(2))


def test_prefix_and_step_are_the_whole_transformer(prior, caption):
    expected = plain(prior, *x_t(), *caption)
    torch.testing.assert_close(prior(*x_t(), prior.prefix(*caption)), expected, rtol=1e-10, atol=1e-10)


def test_one_prefix_serves_every_step(prior, caption):
    prefix = prior.prefix(*caption)
    copies = [tensor.clone() for kv in prefix.kv for tensor in kv]
    first = prior(*x_t(), prefix)
    prior(x_t()[0] + 1, x_t()[1].flip(0), prefix)
    assert all(a.equal(b) for a, b in zip(copies, (tensor for kv in prefix.kv for tensor in kv), strict=True))
    assert prior(*x_t(), prefix).equal(first)


def test_padding_is_not_looked_at(prior, caption):
    tokens, emb, mask = caption
    other = torch.where(mask[..., None], tokens, tokens + 100)
    expected = prior(*x_t(), prior.prefix(tokens, emb, mask))
    torch.testing.assert_close(prior(*x_t(), prior.prefix(other, emb, mask)), expected, rtol=0, atol=0)


def test_every_word_is_looked_at(prior, caption):
    tokens, emb, mask = caption
    tokens = tokens.requires_grad_()
    prior(*x_t(), prior.prefix(tokens, emb, mask)).sum().backward()
    assert tokens.grad.abs().amax(2).gt(0).equal(mask)


def test_a_position_sees_none_after_it(prior, caption):
    """Keys and values of the first positions are the same for any later words, so for any x_t."""
    tokens, emb, mask = caption
    mask = torch.ones_like(mask)
    first = prior.prefix(tokens, emb, mask)
    second = prior.prefix(torch.cat([tokens[:, :4], tokens[:, 4:] - 1], dim=1), emb + 1, mask)
    for a, b in zip(first.kv, second.kv, strict=True):
        assert a.k[:, :, :4].equal(b.k[:, :, :4])
        assert not a.v[:, :, 4:].equal(b.v[:, :, 4:])


def test_gradients_reach_every_parameter(prior, caption):
    prior(*x_t(), prior.prefix(*caption)).square().sum().backward()
    assert [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("make", [LinearPrior, lambda **d: ResidualPrior(**d, width=8, blocks=3)])
def test_regressing_priors_answer_alike_at_any_time(make, caption):
    prior = make(image_dim=6, text_dim=5).double()
    x, t = x_t()
    prefix = prior.prefix(*caption)
    assert prefix.shape == (B, 6)
    assert prior(x, t, prefix).equal(prior(x * 0, t * 0, prefix))


def test_no_prior_is_the_captions_embedding(caption):
    prior = NoPrior(image_dim=5).double()
    prior.standardise.set(torch.arange(5.0), torch.arange(5.0) + 1)
    said = prior(torch.zeros(B, 5).double(), torch.zeros(B).long(), prior.prefix(*caption))
    torch.testing.assert_close(prior.standardise.inverse(said), caption[1])
    assert list(prior.parameters()) == []


def test_standardise_is_undone_and_travels():
    standardise = Standardise(4)
    z = torch.randn(2, 4, 3, 3)
    assert standardise(z).equal(z)
    standardise.set(torch.randn(4), torch.rand(4) + 0.5)
    torch.testing.assert_close(standardise.inverse(standardise(z)), z)
    torch.testing.assert_close(standardise(z)[:, 1], (z[:, 1] - standardise.mean[1]) / standardise.std[1])
    assert set(standardise.state_dict()) == {"mean", "std"}


def test_sinusoid_is_cosines_and_then_sines():
    """Of width 4: at frequencies 1 and 1/100."""
    expected = [[1, 1, 0, 0], [math.cos(10), math.cos(0.1), math.sin(10), math.sin(0.1)]]
    torch.testing.assert_close(sinusoid(torch.tensor([0, 10]), 4), torch.tensor(expected))
