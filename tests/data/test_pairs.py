"""Which samples are trained on, with which caption, in which shape: decided before anything is decoded."""

import io
import json
import math
import pickle
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from fixtures.large import one_bit_png, png_without_pixels
from fixtures.shards import picture, sample
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image, ImageFile

from open_kandinsky.config import validate
from open_kandinsky.data.pairs import (
    AspectBuckets,
    CaptionChooser,
    Captions,
    Chooser,
    Filters,
    OneShape,
    Pairs,
    Shape,
    Shapes,
)
from open_kandinsky.data.tar.sample import Raw
from open_kandinsky.data.transforms import MAX_PIXELS, ClipPixels, Pixels, covering, image_size, open_image

ANY = dict(min_side=None, min_pixels=None, max_aspect=None, known={}, if_known={}, labels={})


def raw(**changes):
    return Raw("s/0", "s.tar", sample(7, **changes))


def info(**facts):
    return json.dumps(facts).encode()


def refused(act):
    with pytest.raises(ValueError) as caught:
        act()
    return caught.value.args


# --- sizes ---


def encoded(image, form, orientation=1):
    data, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(data, form, exif=exif)
    return data.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_the_upright_image(form, orientation):
    data = encoded(Image.new("RGB", (30, 20)), form, orientation)
    assert image_size(data) == open_image(data).size == ((30, 20) if orientation < 5 else (20, 30))


def test_the_size_is_read_from_the_header_alone():
    head = png_without_pixels(640, 480)
    assert image_size(head) == (640, 480)
    with pytest.raises(ValueError, match="not a usable image"):
        open_image(head)


@pytest.mark.parametrize(
    "data",
    [png_without_pixels(30_000, 30_000), png_without_pixels(2**31 - 1, 1000), one_bit_png(30_000, 30_000)],
    ids=["header", "wide", "one bit"],
)
def test_what_is_too_large_is_refused_before_it_is_decoded(data, monkeypatch):
    """900 million pixels would take 2.7 GB."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("it was decoded"))
    for read in (open_image, image_size):
        with pytest.raises(ValueError, match="not a usable image.*(pixels|exceeds)"):
            read(data)
    assert 30_000 * 30_000 > MAX_PIXELS


@pytest.mark.parametrize("data", [b"", b"<html>", picture(1, (1, 9)), picture(3)[:20]])
def test_what_is_no_image_has_no_size(data):
    with pytest.raises(ValueError, match="not a usable image"):
        image_size(data)


def test_a_crop_of_any_shape():
    """A picture whose red grows to the right and green downwards by known amounts: the crop is the middle."""
    image = Image.new("RGB", (60, 40))
    image.putdata([(4 * x, 6 * y, 0) for y in range(40) for x in range(60)])
    levels = (covering(image, 20, 20) + 1) * 127.5
    assert levels.shape == (3, 20, 20)
    expected = torch.tensor([4 * (10 + 2 * x + 0.5) for x in range(20)])
    assert (levels[0, 10, 2:-2] - expected[2:-2]).abs().max() <= 1, "columns 10 to 50, two to one"
    same = (covering(image, 40, 60) + 1) * 127.5
    assert torch.equal(same[0, 0].round(), 4.0 * torch.arange(60)), "its own shape is left alone"
    assert torch.equal(covering(image, 16, 16), Pixels(size=16)(image))


# --- filters ---


@pytest.mark.parametrize(
    ("rule", "size", "facts", "reason"),
    [
        ({"min_side": 20}, (20, 40), {}, None),
        ({"min_side": 21}, (40, 20), {}, "side"),
        ({"min_pixels": 800}, (20, 40), {}, None),
        ({"min_pixels": 801}, (20, 40), {}, "pixels"),
        ({"max_aspect": 2.0}, (20, 40), {}, None),
        ({"max_aspect": 2.0}, (41, 20), {}, "aspect"),
        ({"known": {"similarity": [0.28, None]}}, (9, 9), {"similarity": 0.28}, None),
        ({"known": {"similarity": [0.28, None]}}, (9, 9), {"similarity": "0.27"}, "similarity"),
        ({"known": {"similarity": [0.28, None]}}, (9, 9), {}, "no similarity"),
        ({"known": {"similarity": [0.28, None]}}, (9, 9), {"similarity": math.nan}, "no similarity"),
        ({"known": {"similarity": [None, None]}}, (9, 9), {"similarity": "high"}, "no similarity"),
        ({"if_known": {"punsafe": [None, 0.5]}}, (9, 9), {"punsafe": 0.5}, None),
        ({"if_known": {"punsafe": [None, 0.5]}}, (9, 9), {"punsafe": 0.51}, "punsafe"),
        ({"if_known": {"punsafe": [None, 0.5]}}, (9, 9), {"punsafe": None}, None),
        ({"labels": {"NSFW": ["UNLIKELY"]}}, (9, 9), {"NSFW": "UNLIKELY"}, None),
        ({"labels": {"NSFW": ["UNLIKELY"]}}, (9, 9), {"NSFW": "UNSURE"}, "NSFW"),
        ({"labels": {"NSFW": ["UNLIKELY"]}}, (9, 9), {}, "NSFW"),
    ],
)
def test_a_rule_and_its_bounds(rule, size, facts, reason):
    check = Filters(**ANY | rule).check
    if reason is None:
        check(size, facts)
    else:
        assert refused(lambda: check(size, facts))[0] == f"filtered out: {reason}"


def test_bounds_that_are_no_pair_are_refused():
    with pytest.raises(ValueError, match=r"similarity: \[0.28\]; give \[least, most\]"):
        Filters(**ANY | {"known": {"similarity": [0.28]}})


# --- captions ---


def chosen(weights, sample, facts=(), n=4000):
    captions = Captions(weights=weights)
    return Counter(captions.choose(sample, dict(facts), random.Random(at)) for at in range(n))


def test_captions_come_by_their_weights():
    found = chosen({"txt": 0.5, "blip": 0.3, "many": 0.2}, raw(txt=b" a "), {"blip": "b", "many": ["c", " d ", "", 3]})
    expected = {"a": 0.5, "b": 0.3, "c": 0.1, "d": 0.1}
    assert found.keys() == expected.keys()
    for caption, share in expected.items():
        assert abs(found[caption] - 4000 * share) < 4 * math.sqrt(4000 * share * (1 - share)), caption


def test_what_is_missing_falls_to_the_others():
    found = chosen({"txt": 0.5, "blip": 0.3, "other": 0.1}, raw(txt=b""), {"blip": "b", "other": "o"})
    assert found.keys() == {"b", "o"} and abs(found["b"] - 3000) < 4 * math.sqrt(4000 * 3 / 16)
    assert chosen({"txt": 0.5, "blip": 0.5}, raw(txt=b" \n"), {"blip": "b"}, n=50) == {"b": 50}


def test_a_weight_of_zero_is_for_when_there_is_no_other():
    weights = {"txt": 1.0, "caption": 0.0}
    assert chosen(weights, raw(txt=b"a"), {"caption": "b"}, n=200) == {"a": 200}
    assert chosen(weights, raw(txt=None), {"caption": "b"}, n=20) == {"b": 20}


@pytest.mark.parametrize(
    ("members", "facts", "reason"),
    [
        ({"txt": None}, {}, "missing caption"),
        ({"txt": b" "}, {"blip": ["", None]}, "missing caption"),
        ({"txt": b""}, {"blip": None}, "zero-byte member"),
        ({"txt": b"\xff"}, {"blip": "b"}, "unreadable caption"),
    ],
)
def test_no_caption(members, facts, reason):
    captions = Captions(weights={"txt": 0.5, "blip": 0.5})
    assert refused(lambda: captions.choose(raw(**members), facts, random.Random(0)))[0] == reason


@pytest.mark.parametrize("weights", [{}, {"txt": -1.0}])
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="at least one place"):
        Captions(weights=weights)


# --- buckets ---

SIZES = [(512, 64, 2.0), (768, 64, 2.0), (256, 64, 4.0), (768, 64, 3.0), (64, 16, 2.5)]


def buckets(size, step, most):
    return AspectBuckets(size=size, step=step, max_aspect=most, field="pixels")


@pytest.mark.parametrize(("size", "step", "most"), SIZES)
def test_every_shape_keeps_its_bounds_and_none_could_be_larger(size, step, most):
    shapes = buckets(size, step, most).shapes
    assert Shape(size, size) in shapes and len(set(shapes)) == len(shapes)
    assert {Shape(shape.width, shape.height) for shape in shapes} == set(shapes)
    for height, width in shapes:
        assert height % step == width % step == 0 and max(height, width) <= most * min(height, width)
        assert height * width <= size * size < (max(height, width) + step) * min(height, width)


def test_the_shapes_of_768():
    heights = [shape.height for shape in buckets(768, 64, 2.0).shapes]
    assert heights == [576, 640, 704, 768, 832, 896, 1024]


@pytest.mark.parametrize(("size", "step", "most"), SIZES)
def test_the_nearest_shape_crops_least(size, step, most):
    """Against every other shape; and no more than half of the gap between neighbours, which is in logarithms."""
    made, draws = buckets(size, step, most), random.Random(0)
    aspects = [shape.height / shape.width for shape in made.shapes]
    gap = max(after / before for before, after in zip(aspects, aspects[1:], strict=False))
    for _ in range(500):
        width, height = draws.randint(50, 4000), draws.randint(50, 4000)
        kept = {shape: share_kept(shape, width, height) for shape in made.shapes}
        best = made.bucket((width, height))
        assert kept[best] == pytest.approx(max(kept.values()), rel=1e-9)
        if aspects[0] <= height / width <= aspects[-1]:
            assert kept[best] >= 1 / math.sqrt(gap) - 1e-9


def share_kept(shape, width, height):
    """Of the image's area, when it is cropped to a shape's aspect."""
    ratio = (shape.height / shape.width) / (height / width)
    return min(ratio, 1 / ratio)


def test_no_shape_is_small_enough():
    with pytest.raises(ValueError, match="no shape of at most 1024 pixels.*multiples of 64"):
        buckets(32, 64, 2.0)


# --- pairs ---


def pairs(**changes):
    parts = dict(
        fields={"pixels": Pixels(size=8)},
        filters=Filters(**ANY),
        captions=Captions(weights={"txt": 1.0, "caption": 0.0}),
        buckets=OneShape(),
    )
    return Pairs(**parts | changes)


def test_a_row_in_one_shape():
    made = pairs()
    shape = made.bucket(raw())
    row = made.row(raw(), shape, random.Random(0))
    assert shape is None and row.keys() == {"pixels", "caption", "key"} and row["pixels"].shape == (3, 8, 8)
    assert ((row["pixels"][0] + 1) * 127.5).round().unique().tolist() == [7]
    assert (row["caption"], row["key"]) == ("c7", "s/0")


def test_a_row_in_the_shape_of_its_image():
    """Height to width is 0.75, between 48:80 and 64:64, nearer to the first. CLIP's field keeps its own shape."""
    made = pairs(buckets=buckets(64, 16, 2.0), fields={"pixels": Pixels(size=8), "clip_pixels": ClipPixels(size=14)})
    shape = made.bucket(raw())
    row = made.row(raw(), shape, random.Random(0))
    assert shape == Shape(48, 80)
    assert row["pixels"].shape == (3, *shape) and row["clip_pixels"].shape == (3, 14, 14)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"png": None}, "missing image"),
        ({"png": b""}, "zero-byte member"),
        ({"json": b""}, "zero-byte member"),
        ({"png": b"<html>"}, "unreadable image"),
        ({"png": png_without_pixels(30_000, 30_000)}, "unreadable image"),
        ({"json": b"[1]"}, "unreadable json"),
        ({"json": info(similarity=0.1)}, "filtered out: similarity"),
        ({"png": picture(1, (9, 30))}, "filtered out: aspect"),
    ],
)
def test_what_is_refused_before_it_is_decoded(changes, reason, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("it was decoded"))
    made = pairs(filters=Filters(**ANY | {"max_aspect": 3.0, "if_known": {"similarity": [0.28, None]}}))
    assert refused(lambda: made.bucket(raw(**changes)))[0] == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"txt": None, "json": b"{}"}, "missing caption"),
        ({"txt": b"", "json": b"{}"}, "zero-byte member"),
        ({"png": picture(7)[:-30]}, "unreadable image"),
    ],
)
def test_what_is_noticed_when_it_is_decoded(changes, reason):
    made = pairs()
    shape = made.bucket(raw(**changes))
    assert refused(lambda: made.row(raw(**changes), shape, random.Random(0)))[0] == reason


def test_facts_of_the_side_file_count_where_the_json_has_none():
    strict = pairs(filters=Filters(**ANY | {"known": {"similarity": [0.28, None]}}))
    beside = raw(json=b"{}")._replace(facts={"similarity": 0.3})
    assert strict.bucket(beside) is None
    assert refused(lambda: strict.bucket(beside._replace(facts={})))[0] == "filtered out: no similarity"
    both = beside._replace(members=beside.members | {"json": info(similarity=0.2)})
    assert refused(lambda: strict.bucket(both))[0] == "filtered out: similarity"


# --- configuration ---

CONF = Path(__file__).parents[2] / "conf"
CHOICES = list((CONF / "data").glob("*/*.yaml"))


@pytest.mark.parametrize("path", sorted(CHOICES), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_choice_can_be_built(path):
    node = OmegaConf.load(path)
    validate.refuse_misfits(OmegaConf.to_container(node, resolve=False))
    cfg = OmegaConf.create({"dims": {"image_size": 256}, "node": node})
    made = instantiate(cfg.node)
    likeness = {"filters": Chooser, "captions": CaptionChooser, "buckets": Shapes}
    assert isinstance(made, likeness[path.parent.name])
    assert path.read_text().startswith("# @package data.") and pickle.loads(pickle.dumps(made)) is not None
