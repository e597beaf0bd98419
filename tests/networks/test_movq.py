"""The autoencoder and its codebook."""

import pytest
import torch

from open_kandinsky.networks.movq import MoVQ
from open_kandinsky.networks.quantizer import Codebook, perplexity, perplexity_of


def movq(quantise_latents=False, codes=16):
    torch.manual_seed(0)
    sizes = {"multipliers": [1, 2, 2], "blocks": 1, "attention_levels": [2], "latent_channels": 4, "beta": 0.25}
    return MoVQ(channels=32, **sizes, codes=codes, quantise_latents=quantise_latents)


def codebook(codes=10, channels=3, beta=0.25):
    torch.manual_seed(0)
    book = Codebook(codes=codes, channels=channels, beta=beta)
    torch.nn.init.normal_(book.embedding.weight)
    return book


def pixels(b=2):
    return torch.rand(b, 3, 16, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def latent(channels=3):
    return torch.randn(2, channels, 5, 4, generator=torch.Generator().manual_seed(2))


def test_shapes():
    network = movq()
    z = network.encode(pixels())
    assert network.factor == 4
    assert z.shape == (2, 4, 4, 2)
    assert network.decode(z).shape == (2, 3, 16, 8)


def test_quantised_latents_are_code_vectors():
    network = movq(quantise_latents=True)
    z = network.encode(pixels())
    nearest = torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, 4), network.codebook.embedding.weight).min(1).values
    assert nearest.max() < 1e-6
    assert network.codebook.quantise(z).equal(z)


def test_the_switch_is_all_that_differs():
    with_codes, without = movq(quantise_latents=True), movq()
    z = without.encode(pixels())
    z_q = without.codebook.quantise(z)
    assert not z_q.equal(z)
    assert with_codes.encode(pixels()).equal(z_q)
    assert with_codes.decode(z).equal(without.decode(z_q))
    assert not without.decode(z).equal(without.decode(z_q))


def test_training_goes_through_the_codebook_whatever_the_switch():
    for switch in (True, False):
        network = movq(quantise_latents=switch)
        out = network(pixels())
        assert out.index.shape == (2, 4, 2)
        torch.testing.assert_close(out.pixels, network.decode(network.codebook.lookup(out.index)))
        torch.testing.assert_close(out.z, network.quant(network.encoder(pixels())))


def test_nearest_is_by_brute_force():
    book, z = codebook(), latent()
    flat = z.permute(0, 2, 3, 1).reshape(-1, 3)
    distance = (flat[:, None].double() - book.embedding.weight[None].double()).square().sum(2)
    assert book.nearest(z).flatten().equal(distance.argmin(1))


def test_nearest_computes_in_float32():
    """bfloat16 would confuse codes that lie near each other."""
    book, z = codebook(codes=500), latent().bfloat16()
    assert book.nearest(z).equal(book.nearest(z.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert book.quantise(z).dtype == torch.bfloat16
        assert book.nearest(latent()).equal(codebook(codes=500).nearest(latent()))


def test_straight_through():
    """The value is the code's, the gradient is handed to z as it comes."""
    book, z = codebook(), latent().requires_grad_()
    quantised = book(z)
    torch.testing.assert_close(quantised.z_q, book.lookup(quantised.index))
    weight = torch.randn(z.shape)
    (quantised.z_q * weight).sum().backward()
    torch.testing.assert_close(z.grad, weight)
    assert book.embedding.weight.grad is None


def test_legacy_loss():
    """Weight 1 pulls z to its code, beta the code to z: the other way round than in the paper."""
    book, z = codebook(beta=0.25), latent().requires_grad_()
    loss, index = book(z).loss, book.nearest(z)
    e = book.embedding.weight[index].permute(0, 3, 1, 2).detach()
    torch.testing.assert_close(loss, 1.25 * (e - z).square().mean())
    loss.backward()
    torch.testing.assert_close(z.grad, 2 * (z.detach() - e) / z.numel())
    pull = torch.zeros(10, 3).index_add_(0, index.flatten(), (e - z.detach()).permute(0, 2, 3, 1).reshape(-1, 3))
    torch.testing.assert_close(book.embedding.weight.grad, 0.25 * 2 * pull / z.numel())


def test_perplexity_from_one_to_all():
    assert float(perplexity(torch.zeros(3, 4).long(), 8)) == 1
    assert float(perplexity(torch.arange(8).repeat(3), 8)) == pytest.approx(8)
    assert float(perplexity(torch.tensor([0, 0, 1, 1]), 8)) == pytest.approx(2)


def test_gradients_reach_every_parameter():
    network = movq(codes=2)
    with torch.no_grad():  # both codes in use
        z = network.quant(network.encoder(pixels()))
        network.codebook.embedding.weight.copy_(torch.stack([z[0, :, 0, 0], z[1, :, 3, 1]]))
    out = network(pixels())
    (out.pixels.square().mean() + out.codebook_loss).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_perplexity_of_counts():
    """Of a batch's indices it is the same; of nothing it is 0."""
    index = torch.tensor([0, 0, 3, 5, 5, 5])
    assert float(perplexity_of(torch.bincount(index, minlength=8))) == float(perplexity(index, 8))
    assert float(perplexity_of(torch.zeros(8, dtype=torch.long))) == 0


def test_codes_are_restarted_by_name():
    book, latents = codebook(), torch.arange(30.0).view(10, 3)
    before, which = book.embedding.weight.detach().clone(), torch.arange(10) % 3 == 0
    book.restart(which, latents)
    assert book.embedding.weight[which].equal(latents[which])
    assert book.embedding.weight[~which].equal(before[~which])


def test_the_last_convolution_makes_pixels_of_the_features():
    network = movq()
    for made in (network(pixels()), network.without_codebook(pixels())):
        assert network.decoder.conv_out(made.features).equal(made.pixels)
