"""The self-check measures what it says, and what it did not measure is never called right."""

import copy
import json
import re
import shutil
import sys

import numpy as np
import open_clip
import pytest
import torch
from fixtures import published as maker
from fixtures.evaluators import inception_state
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import functional as tv

from open_kandinsky.config import compose
from open_kandinsky.evaluation import features, reproduce
from open_kandinsky.evaluation.reproduce import Check, EvaluatorFile, weights_checks
from open_kandinsky.metrics import evaluators
from open_kandinsky.metrics.evaluators import Inception
from open_kandinsky.metrics.frechet import frechet_distance
from open_kandinsky.selfcheck import chosen_checks, main, selfcheck
from open_kandinsky.weights.published import INCEPTION

NOWHERE = "http://127.0.0.1:9"  # a port that nobody listens on


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return maker.make(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def url(made):
    with maker.serving(made / "served") as url:
        yield url


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def composed(home):
    """The verb's config; to compose it takes a second."""
    return compose.compose("selfcheck", [f"to='{home / 'to'}'", f"evaluator_weights='{home / 'w'}'"])


@pytest.fixture
def at(made, url, home, composed, monkeypatch):
    """A function from an address to a config of what is there. The folders that it names are empty, and no other is
    looked at; the hashes of the stand-ins are the published ones."""
    for name in ("to", "w"):
        shutil.rmtree(home / name, ignore_errors=True)
        (home / name).mkdir()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TORCH_HOME", str(home / "torch"))
    monkeypatch.delenv("EVAL_WEIGHTS_DIR", raising=False)
    monkeypatch.setattr(features, "Inception", maker.Small)

    def config(checks, url=url):
        publish(made / "served", url, monkeypatch)
        return moved(copy.deepcopy(composed), url, made, checks)

    return config


def publish(served, url, monkeypatch):
    """The stand-ins' hashes and addresses, in place of those of the real weights."""
    inception, clip, other = (maker.published(served / name, url) for name in maker.WEIGHTS)
    for module in (features, reproduce):
        monkeypatch.setattr(module, "INCEPTION", inception)
        monkeypatch.setattr(module, "published_clip", lambda *_: clip)
    monkeypatch.setattr(reproduce, "EVALUATORS", (inception, other))


def moved(cfg, url, made, checks):
    """The config with the stand-ins' addresses, numbers and sizes."""
    known = cfg.known
    known.weights.clip = {maker.CLIP: "openai"}
    for number, file in enumerate(known.cats.measurement.pictures.files):
        file.url = f"{url}/cats/{number}.jpg"
    known.cats.measurement.moments.files[0].url = f"{url}/stats.npz"
    cmmd = known.cmmd.measurement
    first = cmmd.real.files[0]
    cmmd.real.files = [OmegaConf.merge(first, {"url": f"{url}/real/{number}.png"}) for number in range(2)]
    cmmd.generated.files[0].url = f"{url}/drawn/0.png"
    cmmd.clip.model = maker.CLIP
    cmmd.preparation.size = maker.CLIP_SIZE
    pictures, coco = {"n": 6, "folder": str(made / "served" / "drawn")}, {"n": 12, "folder": str(made / "coco")}
    known.gigagan.measurement = OmegaConf.merge(known.gigagan.measurement, {"pictures": pictures, "coco": coco})
    cfg.checks = list(checks)
    return cfg


def only(cfg):
    (check,) = chosen_checks(cfg)
    return check


def measured(check):
    assert check.obstacle() is None
    return check.measurement.measure()


def told(cfg):
    """selfcheck.json's checks by their names."""
    found = json.loads(open(f"{cfg.to}/selfcheck.json").read())
    return {check["check"]: check for check in found["checks"]}


def opened(path):
    return Image.open(path).convert("RGB")


def squares(folder, size):
    """As text2image-benchmark and cmmd-pytorch: half of what is over rounded down, bicubic to whole levels; [0, 1]."""
    rows = []
    for path in sorted(folder.iterdir()):
        x = np.asarray(opened(path))
        side = min(x.shape[:2])
        top, left = (x.shape[0] - side) // 2, (x.shape[1] - side) // 2
        square = Image.fromarray(x[top : top + side, left : left + side])
        rows.append(tv.to_tensor(square.resize((size, size), Image.BICUBIC)))
    return torch.stack(rows)


@torch.inference_mode()
def cats_directly(served, real, network):
    """As text2image-benchmark: to [-1, 1]; and from features, where we have but moments."""
    pool = network.activations(2 * squares(served / "cats", 299) - 1).pool
    return frechet_distance(pool, torch.from_numpy(np.load(real / "pool.npy")))


@torch.inference_mode()
def embedded(served, pixels):
    network = open_clip.create_model(maker.CLIP, force_quick_gelu=True).eval()
    network.load_state_dict(load_file(served / maker.TINY))
    pixels = tv.normalize(pixels, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    return torch.nn.functional.normalize(network.encode_image(pixels)).double()


def kernel(x, y):
    return torch.exp(-torch.cdist(x, y).square() / 200).mean()


def cmmd_directly(served):
    """As cmmd-pytorch, which counts every pair, a picture with itself too."""
    x = embedded(served, squares(served / "real", maker.CLIP_SIZE)[:2])
    y = embedded(served, squares(served / "drawn", maker.CLIP_SIZE)[:1])
    return float(1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)))


def test_weights_cats_and_cmmd_are_measured_as_others_did_and_agree(at, made, capfd):
    cfg = at(["weights", "cats", "cmmd"])
    expected = {
        "cats": cats_directly(made / "served", made / "served", maker.small(made / "served")),
        "cmmd": cmmd_directly(made / "served"),
    }
    for name, value in expected.items():
        cfg.known[name].value = value
    assert selfcheck(cfg)
    found = told(cfg)
    assert {one["verdict"] for one in found.values()} == {"ok"} and len(found) == 5
    assert expected["cats"] > 0.01 and found["cats"]["measured"] == pytest.approx(expected["cats"], rel=1e-5)
    assert expected["cmmd"] > 0.1 and found["cmmd"]["measured"] == pytest.approx(expected["cmmd"], abs=1e-3)
    said = capfd.readouterr().out
    assert "5 of 5 agree, 0 differ, 0 were not run" in said
    assert len(re.findall(r"hash not published: \S+\.(?:jpg|png|npz), SHA-256 [0-9a-f]{64}", said)) == 9


def test_drawn_pictures_are_scored_under_gigagans_protocol(at, made, home):
    network, pools = maker.small(made / "served"), []
    for paths in (sorted((made / "served/drawn").iterdir()), sorted((made / "coco/val2014").iterdir())):
        cropped = [tv.center_crop(opened(path), min(opened(path).size)) for path in paths]
        pixels = torch.stack([tv.pil_to_tensor(one.resize((256, 256), Image.LANCZOS)) for one in cropped])
        pools.append(network.activations(evaluators.clean(pixels)).pool)
    check = only(at(["gigagan"]))
    assert measured(check) == pytest.approx(frechet_distance(*pools), rel=1e-5)
    unpublished = [part.unpublished() for part in check.measurement.inputs()]
    assert [files.keys() for files in unpublished if files] == [{str(made / "served/drawn")}]
    assert {path.name for path in (home / "to/gigagan/features").iterdir()} > {"gigagan"}


@pytest.mark.slow
def test_cats_are_measured_by_inception_itself(at, home, made, monkeypatch):
    path = home / "w" / maker.INCEPTION
    cfg = at(["cats"])
    torch.save(inception_state(), path)
    for module, name in ((features, "Inception"), (features, "INCEPTION"), (reproduce, "INCEPTION")):
        monkeypatch.setattr(module, name, Inception if name == "Inception" else maker.published(path, NOWHERE))
    network = evaluators.folded(Inception(state=torch.load(path), input_path=evaluators.pytorch_fid))
    maker.write_moments(home / "to", network)
    expected = cats_directly(made / "served", home / "to", network)
    assert measured(only(cfg)) == pytest.approx(expected, rel=1e-5)


def run_verb(cfg, monkeypatch):
    """The exit code of the verb, given this config."""
    monkeypatch.setattr(compose, "checked", lambda *_, **__: cfg)
    monkeypatch.setattr(sys, "argv", ["selfcheck"])
    monkeypatch.setattr("hydra.main", lambda **_: lambda job: lambda: job(cfg))
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_another_number_differs_and_the_exit_code_says_so(at, monkeypatch, capfd):
    cfg = at(["cmmd"])
    cfg.known.cmmd.value = 1000.0
    assert run_verb(cfg, monkeypatch) == 1
    assert told(cfg)["cmmd"]["verdict"] == "differs"
    assert re.search(r"cmmd +1000\.0000 +\d+\.\d{4} +-\S+ +differs", capfd.readouterr().out)
    cfg.known.cmmd.value = told(cfg)["cmmd"]["measured"]
    assert run_verb(cfg, monkeypatch) == 0
    assert "in place of an earlier one" in capfd.readouterr().out


def test_other_weights_differ_and_no_number_is_taken_with_them(at, home, made):
    cfg = at(["weights", "cats"])
    (home / "w" / maker.INCEPTION).write_bytes((made / "served" / maker.OTHER).read_bytes())
    assert not selfcheck(cfg)
    found = told(cfg)
    verdicts = {name: one["verdict"] for name, one in found.items()}
    assert verdicts.pop("cats") == "not run" and "SHA-256" in found["cats"]["reason"]
    assert verdicts.pop(f"weights: {maker.INCEPTION}") == "differs" and set(verdicts.values()) == {"ok"}


def test_without_a_network_there_is_one_message(at, monkeypatch, home, capfd):
    cfg = at(["weights", "cats", "cmmd", "gigagan"], NOWHERE)
    cfg.known.gigagan.measurement.coco.folder = None
    assert run_verb(cfg, monkeypatch) == 2
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("open-kandinsky selfcheck: ") == 1
    assert "needs a network (or these files put here by hand); nothing was checked\n" in said.err
    for name in ("w/other.pth (SHA-256", "to/cats/4.jpg (hash not published)", "to/stats.npz", "w/clip.safetensors"):
        assert f"    to {home / name}" in said.err
    assert said.err.count(f"to {home / 'w' / maker.INCEPTION}") == 1  # though three checks read it
    assert "gigagan: coco=null" in said.err and "Connection refused" in said.err
    assert not (home / "to" / "selfcheck.json").exists()


def test_what_was_put_there_by_hand_is_checked_and_the_rest_is_not_called_right(at, made, home, capfd):
    for name in maker.WEIGHTS:
        (home / "w" / name).write_bytes((made / "served" / name).read_bytes())
    cfg = at(["weights", "cats", "gigagan"], NOWHERE)
    cfg.known.gigagan.measurement.pictures.n = 7
    assert not selfcheck(cfg)
    found = told(cfg)
    assert [one["verdict"] for one in found.values()] == ["ok"] * 3 + ["not run"] * 2
    assert found["cats"]["measured"] is None and found["cats"]["reason"].startswith("no network: ")
    assert "6 PNGs, 7 were published" in found["gigagan"]["reason"]
    said = capfd.readouterr().out
    assert "3 of 5 agree, 0 differ, 2 were not run" in said and "not at hand:\n" in said
    assert f"to {home / 'to/cats/0.jpg'} (hash not published)" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"coco": {"folder": None}}, "coco=null"),
        ({"coco": {"n": 13}}, "12 pictures, where the published number is of 13"),
        ({"pictures": {"folder": "nowhere"}}, "0 PNGs, 6 were published"),
    ],
)
def test_gigagan_is_not_run_on_half_of_it(at, change, said):
    cfg = at(["gigagan"])
    cfg.known.gigagan.measurement = OmegaConf.merge(cfg.known.gigagan.measurement, change)
    assert not selfcheck(cfg)
    assert told(cfg)["gigagan"]["verdict"] == "not run" and said in told(cfg)["gigagan"]["reason"]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [("cats/3.jpg", b"<html>log in</html>", "3.jpg: no picture"), ("stats.npz", b"PK", "no npz of mu and sigma")],
)
def test_a_file_that_is_something_else_is_not_measured(at, home, name, data, said):
    cfg = at(["cats"])
    (home / "to/cats").mkdir(parents=True)
    (home / "to" / name).write_bytes(data)
    assert not selfcheck(cfg)
    assert said in told(cfg)["cats"]["reason"]


def test_a_file_of_another_hash_than_was_published_is_not_measured(at, home):
    cfg = at(["cmmd"])
    cfg.known.cmmd.measurement.real.files[0].sha256 = "0" * 64
    assert not selfcheck(cfg)
    assert f"{'0' * 64} was published" in told(cfg)["cmmd"]["reason"] and not list((home / "to").rglob("*.png"))


@pytest.mark.parametrize(("checks", "said"), [([], "nothing to check"), (["cat"], "did you mean 'cats'")])
def test_a_check_that_there_is_not_is_refused(at, checks, said):
    with pytest.raises(ValueError, match=said):
        selfcheck(at(checks))


def test_a_clip_without_a_published_hash_is_refused():
    shelf = features.EvaluatorWeights(None, False, "cpu")
    with pytest.raises(ValueError, match="of ViT-H-14 .* no hash is published"):
        weights_checks(shelf=shelf, clip={"ViT-H-14": "laion2b_s32b_b79k"})


def test_what_is_not_a_number_never_agrees():
    file = EvaluatorFile(features.EvaluatorWeights(None, False, "cpu"), INCEPTION, lambda: None)
    figure = Check(name="", value=9.06, tolerance=0.02, source="", measurement=file)
    assert figure.agrees(9.079) and figure.agrees(9.041) and not figure.agrees(9.09)
    assert not figure.agrees(float("nan")) and not figure.agrees(float("inf"))
    sha256 = Check(name="", value="abc", tolerance=None, source="", measurement=file)
    assert sha256.agrees("abcd") and not sha256.agrees("ab")


def test_the_goldens_are_the_published_ones(composed):
    goldens = [composed.known[name].value for name in ("cats", "cmmd", "gigagan")]
    assert goldens == [338.15181212283085, 7.696, 9.06]
    urls = re.findall(r"https://raw\S+", OmegaConf.to_yaml(composed.known))
    assert len(urls) == 7 and all(re.search(r"/[0-9a-f]{40}/", url) for url in urls)
