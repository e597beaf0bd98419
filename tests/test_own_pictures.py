"""README's chain on a small machine, from tars of 256 px to a drawing; and sizes that do not fit are told where met."""

import re
from importlib import import_module

import pytest
from fixtures.pictures import photo
from fixtures.shards import write_tar
from fixtures.system import config
from PIL import Image
from test_readme import COMMANDS, words

from open_kandinsky.config import compose
from open_kandinsky.data.cache.folder import read_manifest
from open_kandinsky.precompute import precompute
from open_kandinsky.train import train

SHORT = {"train": ["trainer.max_steps=2", "stage.lr_schedule.warmup=1"], "generate": ["steps=2", "prior_steps=2"]}
CHAIN = [words(command) for command in COMMANDS if "small" in command]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """As img2dataset leaves them: 140 pictures of 256 px, more than CLIP's batch, and 8 held back."""
    root = tmp_path_factory.mktemp("own")
    for folder, count, start in (("pairs", 140, 0), ("pairs_val", 128, 140)):
        samples = {}
        for at in range(start, start + count):
            picture = root / "picture.jpg"
            photo((8, 8), seed=at).resize((256, 256)).save(picture)
            samples[f"{at:09d}"] = {"jpg": picture.read_bytes(), "txt": f"my picture number {at}".encode()}
        write_tar(root / folder / "00000.tar", samples)
    return root


@pytest.mark.slow
def test_the_chain_of_readme_ends_with_a_picture(pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [verb for verb, *_ in CHAIN] == ["train", "train", "precompute", "precompute", "train", "train", "generate"]
    for verb, *typed in CHAIN:
        typed = [re.sub(r"/data/pairs", f"{pairs}/pairs", word).replace("/data/small", "cache") for word in typed]
        short = {
            "train": ["trainer.max_steps=2", "stage.lr_schedule.warmup=1"],
            "generate": ["steps=2", "prior_steps=2"],
        }
        getattr(import_module(f"open_kandinsky.{verb}"), verb)(compose.compose(verb, [*typed, *short.get(verb, [])]))
    assert read_manifest("cache/train")["image_size"] == 32
    assert read_manifest("cache/train")["fields"]["z"]["shape"] == [4, 8, 8]
    assert Image.open("out/small/00000.png").size == (32, 32)


def precomputed(shapes, out, *more):
    typed = [f"urls='{shapes}/shapes/train'", f"out='{out}'", *more]
    return precompute(compose.compose("precompute", typed))


def test_published_weights_do_not_say_their_size(shapes, system, tmp_path):
    text = (system / "movq" / "config.yaml").read_text()
    (tmp_path / "movq").mkdir()
    (tmp_path / "movq" / "weights.safetensors").symlink_to(system / "movq" / "weights.safetensors")
    (tmp_path / "movq" / "config.yaml").write_text(
        re.sub(r"^  image_size: 32\n", "", text, count=1, flags=re.MULTILINE)
    )
    with pytest.raises(ValueError, match="image_size is not given, and the autoencoder in .*movq does not say .*=256"):
        precomputed(shapes, tmp_path / "out", f"clip='{system}/clip'", f"movq='{tmp_path}/movq'")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("size", "told"), [(33, "33: this autoencoder takes multiples of 4"), (0, "at least 1")])
def test_sizes_that_cannot_be(shapes, system, tmp_path, size, told):
    parts = [f"clip='{system}/clip'", f"movq='{system}/movq'"]
    with pytest.raises(ValueError, match=f"image_size=.*{told}"):
        precomputed(shapes, tmp_path / "out", *parts, f"image_size={size}")


def test_another_size_is_made_and_told(shapes, system, tmp_path, capsys):
    parts = [f"clip='{system}/clip'", f"movq='{system}/movq'"]
    out = precomputed(shapes, tmp_path / "out", *parts, "image_size=64")
    assert "image_size=64: the autoencoder in" in capsys.readouterr().out
    assert read_manifest(out)["fields"]["z"]["shape"] == [4, 16, 16]


@pytest.mark.parametrize(
    ("part", "changed", "told"),
    [
        ("decoder", "dims.image_size=64", "image_size=32, not 64: train with these, or precompute"),
        ("decoder", "dims.decoder_text_width=64", "decoder_text_width=32, not 64"),
        ("decoder", "dims.latent_channels=8", "latent_channels=4, not 8"),
        ("prior", "dims.clip=64", "clip=32, not 64"),
        ("prior", "dims.clip_text_width=64", "clip_text_width=32, not 64"),
        ("prior", "dims.text_length=77", "text_length=16, not 77"),
    ],
)
@pytest.mark.parametrize("memory", ["true", "false"])
def test_a_cache_of_other_sizes_is_refused(cached, tmp_path, part, changed, told, memory):
    typed = [changed, f"data.in_memory={memory}", f"run_dir='{tmp_path}/run'"]
    with pytest.raises(ValueError, match=f"was made for dims of {told}"):
        train(config(part, cached, *typed))
