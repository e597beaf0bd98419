"""Packed weights give what plain ones give, for maps and rows of any number, and come back as they were."""

import copy

import pytest
import torch
from fixtures.system import nothing_at_zero, stage
from torch import nn

from open_kandinsky.loading import load, trained
from open_kandinsky.pipeline.execution import packable, packed

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
GENERATOR = torch.Generator()


def drawn(*shape, dtype):
    return torch.randn(*shape, generator=GENERATOR.manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_maps(dtype, bias):
    plain = nn.Linear(33, 50, bias=bias).to(dtype).requires_grad_(False)
    quick = packed(copy.deepcopy(plain))
    inputs = [drawn(*shape, dtype=dtype) for shape in ((33,), (1, 33), (2, 5, 33), (0, 33))]
    for x in [*inputs, drawn(33, 7, 2, dtype=dtype).permute(2, 1, 0)]:
        torch.testing.assert_close(quick(x), plain(x), rtol=0, atol=TOLERANCE[dtype])
    assert quick.weight.is_mkldnn and quick.state_dict()["weight"].equal(plain.weight)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 1},
        {"kernel_size": (3, 5), "padding": (0, 2), "bias": False},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
    ],
)
def test_convolutions_of_maps_of_any_shape(dtype, options):
    plain = nn.Conv2d(32, 48, **options).to(dtype).requires_grad_(False)
    quick = packed(copy.deepcopy(plain))
    for shape in ((2, 32, 8, 8), (1, 32, 16, 12), (3, 32, 5, 7), (2, 32, 8, 8)):
        x = drawn(*shape, dtype=dtype)
        for laid_out in (x, x.contiguous(memory_format=torch.channels_last), x.mT):
            expected = plain(laid_out)
            torch.testing.assert_close(quick(laid_out), expected, rtol=0, atol=TOLERANCE[dtype])
    assert quick.weight.is_mkldnn and quick.state_dict()["weight"].equal(plain.weight)


def test_what_is_packed_is_packed_once():
    layer = packed(nn.Linear(4, 4).requires_grad_(False))
    weight = layer.weight
    assert packed(layer) is layer and layer.weight is weight


def test_other_paddings_and_subclasses_stay_as_they_are():
    class Own(nn.Linear):
        pass

    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding_mode="circular"), Own(4, 4))
    assert not any(layer.weight.is_mkldnn for layer in packed(network))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_what_one_dnn_does_not_compute_in_stays_as_it_is(dtype):
    network = nn.Sequential(nn.Linear(4, 4)).to(dtype)
    assert not packable(network) and packed(network)[0].weight.layout == torch.strided


@pytest.mark.parametrize("part", ["prior", "prior_residual", "decoder", "movq"])
def test_networks(part):
    plain = stage(part).network.requires_grad_(False).eval()
    nothing_at_zero(plain)
    x = {name: drawn(*shape, dtype=torch.float32) for name, shape in SHAPES.items()}
    quick = packed(copy.deepcopy(plain))
    torch.testing.assert_close(RUNS[part](quick, x), RUNS[part](plain, x), rtol=0, atol=1e-5)
    state = quick.state_dict()
    assert all(state[name].equal(value) for name, value in plain.state_dict().items())


SHAPES = {"pixels": (2, 3, 32, 32), "z": (2, 4, 8, 8), "emb": (2, 32), "tokens": (2, 16, 32)}


def of_prior(network, x):
    prefix = network.prefix(x["tokens"], x["emb"], torch.arange(16).expand(2, -1) < 9)
    return network(x["emb"], torch.tensor([3, 900]), prefix)


def of_decoder(network, x):
    return network(x["z"], torch.tensor([3, 900]), network.context(x["emb"], x["tokens"], x["emb"]))


RUNS = {
    "prior": of_prior,
    "prior_residual": of_prior,
    "decoder": of_decoder,
    "movq": lambda network, x: network.decode(network.encode(x["pixels"])),
}


def weights(network):
    return [layer.weight for layer in network.modules() if type(layer) in (nn.Linear, nn.Conv2d)]


def test_a_system_on_a_cpu_draws_with_packed_weights(system):
    pipe = load(system)
    pipe.text_to_image(["a red circle"], steps=1, prior_steps=1)
    drawing = [weights(each) for each in (pipe.prior.network, pipe.decoder.network)]
    assert all(weight.is_mkldnn for each in drawing for weight in each)
    assert not any(weight.is_mkldnn for weight in weights(trained(system / "decoder")))
