"""The Inception against torch-fidelity's, pytorch-fid's and torchmetrics', all with one set of random weights."""

import copy

import pytest
import torch
from fixtures.evaluators import inception_state, photos, torch_fidelity_inception
from torch_fidelity import feature_extractor_inceptionv3

from open_kandinsky.metrics import evaluators
from open_kandinsky.metrics.evaluators import Inception


@pytest.fixture(scope="module")
def state():
    return inception_state()


def exact(state, input_path):
    return Inception(state=state, input_path=input_path, memory_format=torch.contiguous_format)


@pytest.mark.parametrize("size", [256, 512])
def test_it_is_torch_fidelitys_to_the_bit(state, size, monkeypatch):
    pixels = photos(2, size, size)
    pool, logits = torch_fidelity_inception(state, monkeypatch)(pixels)
    ours = exact(state, evaluators.tf1)(pixels)
    assert torch.equal(ours.pool, pool) and torch.equal(ours.logits_unbiased, logits)
    assert pool[0].sub(pool[1]).norm() > 0.1 * pool[0].norm(), "the pictures should not look alike"


def test_it_is_pytorch_fids_to_the_bit(state, monkeypatch):
    theirs = pytest.importorskip("pytorch_fid.inception")
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: state)
    pixels = photos(2, 256, 256)
    with torch.no_grad():
        pool = theirs.InceptionV3().eval()(pixels.float() / 255)[0]
    assert torch.equal(exact(state, evaluators.pytorch_fid)(pixels).pool, pool.flatten(1))


def test_it_is_torchmetrics_only_without_its_antialiasing(state, monkeypatch):
    from torchmetrics.image.fid import NoTrainInceptionV3

    monkeypatch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: state)
    theirs = NoTrainInceptionV3("inception-v3-compat", ["2048"], antialias=False)
    pixels = photos(1, 512, 512)
    ours = exact(state, evaluators.tf1)(pixels).pool
    assert torch.equal(theirs._torch_fidelity_forward(pixels)[0], ours)
    theirs.use_antialias = True
    assert theirs._torch_fidelity_forward(pixels)[0].sub(ours).norm() > 1e-3 * ours.norm()


def test_the_input_paths_are_three(state):
    network = exact(state, evaluators.tf1)
    x = {name: getattr(evaluators, name)(photos(1, 256, 256)) for name in ("tf1", "pytorch_fid", "clean")}
    pools = {name: network.activations(value).pool for name, value in x.items()}
    for one, other in (("tf1", "pytorch_fid"), ("tf1", "clean"), ("pytorch_fid", "clean")):
        assert pools[one].sub(pools[other]).norm() > 1e-3 * pools[one].norm()


@pytest.mark.parametrize("path", ["tf1", "pytorch_fid", "clean"])
def test_white_and_black_are_the_ends_of_a_paths_range(path):
    ends = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 3, 40, 50)
    low, high = getattr(evaluators, path)(ends).unbind()
    assert low.unique().item() == -1
    torch.testing.assert_close(high, torch.full_like(high, 1.0 if path == "pytorch_fid" else 127 / 128))


def test_the_faster_forms_are_as_near_to_the_exact_result(state):
    x = evaluators.tf1(photos(1, 256, 256))
    contiguous = exact(state, evaluators.tf1)
    last = Inception(state=state, input_path=evaluators.tf1)
    doubled, truth = copy.deepcopy(contiguous).double(), x.double()
    for name in doubled.path:
        truth = doubled.get_submodule(name)(truth)

    def error(network):
        return float((network.activations(x).pool - truth.flatten(1)).norm() / truth.norm())

    fastest = evaluators.folded(last)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fastest.modules())
    assert max(error(last), error(fastest)) < 2 * error(contiguous) < 1e-3


def test_a_picture_looks_the_same_in_any_company(state):
    network, pixels = Inception(state=state, input_path=evaluators.tf1), photos(3, 64, 64)
    alone = torch.cat([network(picture).pool for picture in pixels.split(1)])
    torch.testing.assert_close(network(pixels).pool, alone, rtol=1e-3, atol=1e-4)


def test_it_stays_frozen(state):
    network = Inception(state=state, input_path=evaluators.tf1).train()
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_weights_of_another_network_are_refused(state):
    fewer = {name: value for name, value in state.items() if not name.startswith("fc")}
    for wrong in (fewer, state | {"fc.bias": torch.zeros(1000)}):
        with pytest.raises(ValueError, match="not the weights of FID's Inception.*fc"):
            Inception(state=wrong, input_path=evaluators.tf1)
