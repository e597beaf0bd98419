"""Somebody's own photographs, as img2dataset leaves them: pointing data.urls at the folder is all that it takes."""

import io
import json

import numpy as np
import pytest
import torch
from fixtures.shards import write_tar
from fixtures.system import config
from PIL import Image
from safetensors.torch import load_file

from open_kandinsky.data.tar.reader import read_samples
from open_kandinsky.data.tar.stats import SampleStats
from open_kandinsky.train import train

SIZES = [(97, 61), (33, 200), (64, 64), (50, 51), (240, 30), (31, 32)]
CAPTIONS = ["a lake at dusk", "two dogs — running", "“quoted” façade", "x", "a very long caption " * 30, "红色的圆"]


def photograph(at, size, mode):
    """Light that falls off smoothly, with noise: no flat colour, no edge of a rendered shape."""
    rng = np.random.default_rng(at)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    light = np.asarray(small.resize(size, Image.Resampling.BICUBIC)).astype(float) + rng.normal(0, 4, (*size[::-1], 3))
    image = Image.fromarray(light.clip(0, 255).astype(np.uint8)).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(rng.integers(0, 256, size[::-1], dtype=np.uint8)))
    return image


def encoded(image, form, turned):
    data, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6 if turned else 1
    image.save(data, form, quality=90, **({} if form == "PNG" else {"exif": exif}))
    return data.getvalue()


KINDS = [("jpg", "JPEG", "RGB"), ("webp", "WEBP", "RGB"), ("jpg", "JPEG", "L"), ("png", "PNG", "RGBA")]
KINDS += [("webp", "WEBP", "RGBA"), ("png", "PNG", "L"), ("jpg", "JPEG", "CMYK")]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for shard in range(2):
        samples = {}
        for row in range(14):
            at = 14 * shard + row
            extension, form, mode = KINDS[at % len(KINDS)]
            picture = encoded(photograph(at, SIZES[at % len(SIZES)], mode), form, turned=at % 3 == 0)
            caption = f"{at} {CAPTIONS[at % len(CAPTIONS)]}"
            info = {"key": f"{shard:05d}{row:04d}", "caption": caption, "status": "success", "width": 1, "exif": "{}"}
            samples[info["key"]] = {extension: picture, "txt": caption.encode(), "json": json.dumps(info).encode()}
        write_tar(folder / f"{shard:05d}.tar", samples)
    return folder


def test_each_is_read_upright_in_colour(photographs):
    tally = SampleStats(max_bad_share=0.0)
    samples = list(read_samples(str(photographs), tally))
    assert len(samples) == 28 and tally.bad == 0
    for at, found in enumerate(samples):
        turned = at % 3 == 0 and KINDS[at % len(KINDS)][1] != "PNG"
        assert found.image.size == SIZES[at % len(SIZES)][:: -1 if turned else 1] and found.image.mode == "RGB"
    first = np.asarray(photograph(0, SIZES[0], "RGB").transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert abs(np.asarray(samples[0].image).astype(int) - first).mean() < 8, "but for what JPEG loses"


@pytest.mark.parametrize("memory", ["true", "false"])
@pytest.mark.parametrize("part", ["movq", "clip"])
def test_two_steps_on_them(photographs, tmp_path, part, memory):
    distinct = ["data.distinct_captions=false"] if part == "clip" and memory == "false" else []
    given = [f"data.urls='{photographs}'", "data.val_urls=null", f"data.in_memory={memory}", *distinct]
    folder = train(config(part, "nowhere", f"run_dir='{tmp_path}/a'", "trainer.max_steps=2", *given))
    assert all(torch.isfinite(value).all() for value in load_file(folder / "weights.safetensors").values())
