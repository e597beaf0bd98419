"""The oracle reads what was drawn, also through blur and noise, and refuses what was not."""

from dataclasses import replace
from functools import cache
from itertools import islice

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from open_kandinsky.data.shapes.world import SPLITS, Scene, Thing, scenes, toy_world
from open_kandinsky.metrics.shapes_oracle import CaptionAccuracy, ShapesOracle

WORLD = toy_world(size=32)
ORACLE = ShapesOracle(WORLD)
SINGLE = Scene((Thing("circle", "red", "large"),), "", "white")
PAIR = Scene((Thing("circle", "red", ""), Thing("square", "blue", "")), "left of", "black")


def clean(image, rng):
    return image


def blurred(image, rng):
    """As a fair autoencoder would give it back."""
    noisy = gaussian_filter(image.astype(np.float32), (0.7, 0.7, 0)) + rng.normal(0, 6, image.shape)
    return noisy.round().clip(0, 255).astype(np.uint8)


@cache
def draw(size, split, n):
    """Pictures and the scenes they show."""
    world, rng = toy_world(size=size), np.random.default_rng(SPLITS.index(split))
    drawn = list(islice(scenes(world, split, rng), n))
    return [world.render(scene, rng) for scene in drawn], drawn


def accuracy(images, drawn):
    metric = CaptionAccuracy(oracle=ORACLE)
    metric.update(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), drawn)
    return metric.compute()


def wrong(scene, picture=None):
    """The attributes that one drawing of `picture` does not share with `scene`."""
    image = WORLD.render(picture or scene, np.random.default_rng(0))
    return {name for name, right in ORACLE.judge(image, scene).items() if not right}


@pytest.mark.parametrize("n", [200, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("spoil, least", [(clean, 0.995), (blurred, 0.97)])
def test_pictures_are_read_right(split, spoil, least, n):
    images, drawn = draw(32, split, n)
    rng = np.random.default_rng(0)
    assert accuracy([spoil(image, rng) for image in images], drawn)["all"] >= least


@pytest.mark.parametrize("split", SPLITS)
def test_another_caption_is_refused(split):
    images, drawn = draw(32, split, 200)
    meanings = [WORLD.meaning(scene) for scene in drawn]
    others = [i for i in range(200) if meanings[i] != meanings[i - 1]]
    assert accuracy([images[i] for i in others], [drawn[i - 1] for i in others])["all"] < 0.01


def test_other_sizes_of_picture_are_read_too():
    oracle = ShapesOracle(toy_world(size=64))
    assert all(oracle.judge(image, scene)["all"] for image, scene in zip(*draw(64, "seen", 30), strict=True))


@pytest.mark.parametrize(
    "change, keys",
    [
        ({"relation": "right of"}, {"relation"}),
        ({"relation": "above"}, {"relation"}),
        ({"background": "gray"}, {"background"}),
        ({"things": PAIR.things[::-1]}, {"relation"}),
        ({"things": (Thing("circle", "green", ""), PAIR.things[1])}, {"colour"}),
        ({"things": (PAIR.things[0], Thing("cross", "blue", ""))}, {"shape"}),
        ({"things": (Thing("circle", "blue", ""), Thing("square", "red", ""))}, {"colour"}),
        ({"things": PAIR.things[::-1], "relation": "right of"}, set()),
        ({}, set()),
    ],
)
def test_a_change_to_a_pair_flips_what_was_changed(change, keys):
    assert wrong(PAIR, replace(PAIR, **change)) == (keys and keys | {"all"})


@pytest.mark.parametrize("attribute, value", [("shape", "triangle"), ("colour", "green"), ("size", "small")])
def test_a_change_to_a_single_flips_what_was_changed(attribute, value):
    assert wrong(SINGLE, replace(SINGLE, things=(replace(SINGLE.things[0], **{attribute: value}),))) == {
        attribute,
        "all",
    }


def test_only_what_the_scene_has_is_judged():
    image = WORLD.render(SINGLE, np.random.default_rng(0))
    assert set(ORACLE.judge(image, SINGLE)) == {"count", "shape", "colour", "size", "background", "all"}
    assert set(ORACLE.judge(image, PAIR)) == {"count", "shape", "colour", "relation", "background", "all"}


def test_a_thing_too_few_is_not_right_in_any_attribute_of_things():
    assert wrong(PAIR, SINGLE) == {"count", "shape", "colour", "relation", "background", "all"}


def test_a_thing_too_many_is_wrong_in_count_alone():
    circle = replace(SINGLE, things=(Thing("circle", "red", "small"),), background="black")
    assert "count" in wrong(circle, PAIR) and "shape" not in wrong(circle, PAIR)


def test_what_is_read_can_be_seen():
    read = ORACLE.read(torch.from_numpy(WORLD.render(PAIR, np.random.default_rng(0))))
    assert read["background"] == "black" and len(read["things"]) == 2
    for thing in read["things"]:
        wanted = PAIR.things[0] if thing["shape"] == "circle" else PAIR.things[1]
        assert (thing["shape"], thing["colour"], thing["size"]) == (wanted.shape, wanted.colour, "")


@pytest.mark.parametrize("shape", WORLD.shapes)
def test_centres_are_found_to_a_third_of_a_pixel(shape):
    scene = replace(SINGLE, things=(Thing(shape, "yellow", "large"),))
    centre = WORLD.centres(scene, np.random.default_rng(3))[0]
    read = ORACLE.read(WORLD.render(scene, np.random.default_rng(3)))
    np.testing.assert_allclose(read["things"][0]["centre"], centre, atol=1 / 3)


@pytest.mark.parametrize("level", [0, 128, None], ids=["black", "gray", "noise"])
def test_a_picture_of_nothing_is_read_as_wrong(level):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = noise if level is None else np.full_like(noise, level)
    assert not ORACLE.judge(image, PAIR)["all"] and not ORACLE.judge(image, SINGLE)["all"]


def test_a_blob_that_is_no_shape_is_called_none():
    image = np.full((32, 32, 3), WORLD.backgrounds["white"], dtype=np.uint8)
    image[4:28, 14:17] = WORLD.colours["red"]
    assert [thing["shape"] for thing in ORACLE.read(image)["things"]] == ["none"]


def test_accuracy_adds_up_over_batches():
    images, drawn = draw(32, "seen", 40)
    drawn = [*drawn[:30], *drawn[:10]]  # the last ten captions are of other pictures
    whole, metric = accuracy(images, drawn), CaptionAccuracy(oracle=ORACLE)
    for start in range(0, 40, 16):
        batch = torch.from_numpy(np.stack(images[start : start + 16])).permute(0, 3, 1, 2)
        metric.update(batch, drawn[start : start + 16])
    assert metric.compute() == whole
    assert whole["n"] == 40 and whole["all"] == 0.75 == whole["all_single"] == whole["all_pair"]
    assert whole["all_se"] == pytest.approx((0.75 * 0.25 / 40) ** 0.5)
