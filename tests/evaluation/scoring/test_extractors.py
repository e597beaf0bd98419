"""Published CLIPs as evaluators: open_clip's own numbers, and what is told of captions that are cut."""

import json

import open_clip
import pytest
import torch
from fixtures.evaluators import photos
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import save_file

from open_kandinsky.evaluation import features as extractors
from open_kandinsky.evaluation.features import ClipFeatures, EvaluatorWeights, published_clip
from open_kandinsky.weights.published import PublishedFile

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
LONG = "a photograph of " + "a very " * 90 + "long caption"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """open_clip's own model, and the folder of its weights."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "TinyForTests.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / "TinyForTests.json")
    torch.manual_seed(0)
    model = open_clip.create_model("TinyForTests").eval()
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, folder / "tiny.safetensors")
    return model, folder


@pytest.fixture
def features(reference, monkeypatch):
    file = PublishedFile(file="tiny.safetensors", sha256=None, url=None, what="a CLIP for tests")
    monkeypatch.setattr(extractors, "published_clip", lambda model, pretrained: file)
    shelf = EvaluatorWeights(folder=str(reference[1]), accept_unknown=False, device="cpu")
    return ClipFeatures(shelf=shelf, model="TinyForTests", pretrained="none", prefix="A photo depicts ")


def images():
    return [Image.fromarray(photos(1, h, w, seed=h)[0].permute(1, 2, 0).numpy()) for h, w in ((60, 60), (90, 131))]


def test_they_are_open_clips_own(reference, features):
    model, captions = reference[0], ["two dogs", "a red bus"]
    found = features(images(), captions)
    prepare, tokenize = image_transform(48, is_train=False), open_clip.get_tokenizer("TinyForTests")
    with torch.inference_mode():
        image = model.encode_image(torch.stack([prepare(image) for image in images()]))
        text = model.encode_text(tokenize([f"A photo depicts {caption}" for caption in captions]))
    assert torch.allclose(found["image"], image, atol=1e-5) and float(image.std()) > 1e-2
    assert torch.allclose(found["text"], text, atol=1e-6)


def test_a_caption_that_is_cut_keeps_its_end(reference, features):
    """torchmetrics slices the end of text off, and reads the embedding where none is."""
    model, tokenize = reference[0], open_clip.get_tokenizer("TinyForTests")
    token = tokenize([features.prefix + LONG])
    assert int(token[0, -1]) == tokenize.eot_token_id
    with torch.inference_mode():
        assert torch.allclose(features(images()[:1], [LONG])["text"], model.encode_text(token), atol=1e-6)
    assert features.cut(["a dog", LONG, "a cat"]) == [LONG]


def test_the_prefix_counts_when_captions_are_cut(features):
    room = "a " * 73
    assert features.cut([room]) == [room]
    features.prefix = ""
    assert features.cut([room]) == []


def test_weights_without_a_published_hash_are_not_verified(features):
    assert not features.weights.verified and len(features.identity()["weights_sha256"]) == 64


def test_openais_weights_are_known_by_the_hash_in_their_address():
    found = published_clip("ViT-L-14", "openai")
    assert found.file == "ViT-L-14.pt" and found.sha256 and found.sha256.startswith("b8cca3fd41ae0c99")


def test_a_model_that_open_clip_has_not():
    with pytest.raises(ValueError, match="open_clip has no ViT-L-14 pretrained as opeani; it has .*openai"):
        published_clip("ViT-L-14", "opeani")
