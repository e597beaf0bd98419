"""protocol=reconstruction: each figure against the pictures themselves."""

import json

import pytest
import torch
from fixtures import coco as maker
from fixtures.evaluators import inception_state
from torchvision.models import vgg

from open_kandinsky.config import compose
from open_kandinsky.data.coco import Coco
from open_kandinsky.data.transforms import to_images, to_pixels
from open_kandinsky.evaluate import evaluate
from open_kandinsky.evaluation.captions import OnePerImage
from open_kandinsky.evaluation.preparation import Preparation
from open_kandinsky.loading import load
from open_kandinsky.metrics.reconstruction import reconstruction
from open_kandinsky.weights import published

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def evaluators(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluators")
    torch.save(inception_state(), folder / published.INCEPTION.file)
    torch.manual_seed(0)
    layers = vgg.make_layers(vgg.cfgs["D"]).state_dict()
    torch.save({f"features.{name}": x for name, x in layers.items()}, folder / published.VGG16.file)
    return folder


def test_each_figure(system, evaluators, tmp_path):
    coco = maker.make(tmp_path / "coco", n_images=8)
    paths = {"weights": system, "coco": coco, "evaluator_weights": evaluators, "out": tmp_path / "out"}
    asked = [f"{key}='{path}'" for key, path in paths.items()]
    more = ["protocol=reconstruction", "protocol.captions.n=6", "accept_unknown_weights=true", "limit=4"]
    told = evaluate(compose.compose("evaluate", [*asked, *more]))
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())

    prepare = Preparation(crop="centre", filter="bicubic", size=256, jpeg_before=None, jpeg_after=None)
    listed = OnePerImage(n=6, seed=0)(Coco.open(coco))[:4]
    real = torch.stack([to_pixels(prepare(Coco.open(coco).picture(caption.image_id))) for caption in listed])
    pipe = load(system)
    saved = to_images(pipe.latent_to_image(pipe.image_to_latent(real)))
    figures = reconstruction(torch.stack([to_pixels(image) for image in saved]), real)
    for name, each in figures.items():
        assert found["metrics"][name] == pytest.approx(float(each.mean()), rel=1e-5)
    assert found["metrics"]["lpips"] > 0 and found["n"] == 4
    assert 0 < found["metrics"]["fid_of_real"] < found["metrics"]["fid_of_reconstructions"]
    assert told.startswith("reconstruction, 4 pictures: rfid ")
