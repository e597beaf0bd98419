"""The toy set: what is written, that it is so again to the byte, and that nothing held out gets into training."""

import io
import json
import tarfile
from collections import Counter, defaultdict
from itertools import chain, combinations, islice
from math import dist

import numpy as np
import pytest
from open_clip import get_tokenizer
from PIL import Image

from open_kandinsky.data.shapes.world import SPLITS, Scene, Thing, coverage, scenes, toy_world
from open_kandinsky.data.shapes.write import write_shapes

WORLD = toy_world(size=32)
FOLDERS = ("train", *SPLITS)
SIZES = {"images": 1101, "val_images": 120, "seed": 0, "per_shard": 500}
PAIR = Scene((Thing("circle", "red", ""), Thing("square", "blue", "")), "left of", "black")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("shapes") / "set"
    write_shapes(out, world=WORLD, **SIZES)
    return out


def samples(folder):
    """Every sample's json in order, with its picture and its text."""
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        for name in (name for name in files if name.endswith(".json")):
            fields, stem = json.loads(files[name]), name.removesuffix(".json")
            assert stem == fields["key"] and stem.startswith(shard.stem)
            image = Image.open(io.BytesIO(files[f"{stem}.png"]))
            yield fields | {"image": image, "text": files[f"{stem}.txt"].decode()}


def drawn(folder):
    return [Scene.from_json(sample["scene"]) for sample in samples(folder)]


def test_captions_read_as_english():
    single = Scene((Thing("circle", "red", "large"),), "", "white")
    assert WORLD.caption(single) == "a large red circle on a white background"
    assert WORLD.caption(PAIR) == "a red circle left of a blue square on a black background"
    assert WORLD.caption(WORLD.swap(PAIR)) == "a blue square left of a red circle on a black background"


def test_captions_fit_a_short_context():
    tokens = get_tokenizer("ViT-B-32")([WORLD.caption(scene) for scene in chain(WORLD.singles(), WORLD.pairs())])
    assert (tokens != 0).sum(1).max() <= 18 + 2  # with start and end


def test_each_scene_has_its_own_caption():
    captions = [WORLD.caption(scene) for scene in chain(WORLD.singles(), WORLD.pairs())]
    assert len(set(captions)) == len(captions)


def test_scenes_survive_json():
    assert Scene.from_json(json.loads(json.dumps(PAIR.to_json()))) == PAIR


def test_colours_and_backgrounds_are_far_apart():
    assert min(dist(a, b) for a, b in combinations([*WORLD.colours.values(), *WORLD.backgrounds.values()], 2)) > 120


@pytest.mark.parametrize("size", [32, 64])
def test_things_of_a_pair_never_touch_and_nothing_leaves_the_picture(size):
    world, rng, gaps = toy_world(size=size), np.random.default_rng(0), []
    for scene in islice(scenes(world, "seen", rng), 400):
        radii = [world.radius(thing.size) for thing in scene.things]
        centres = world.centres(scene, rng)
        assert all(r <= c <= size - r for centre, r in zip(centres, radii, strict=True) for c in centre)
        if scene.relation:
            gaps.append(np.abs(np.subtract(*centres)).max() - sum(radii))
    assert min(gaps) >= 2 * size / 32


def test_a_mask_has_the_area_of_its_shape():
    circle = coverage("circle", centre=(15.3, 16.8), radius=10.0, size=32)
    assert circle.sum() == pytest.approx(np.pi * 100, rel=0.01)
    assert ((0 < circle) & (circle < 1)).any() and circle.max() == 1


def test_both_readings_of_a_pair_are_in_one_split():
    mirrored = Scene(PAIR.things[::-1], "right of", PAIR.background)
    assert WORLD.meaning(mirrored) == WORLD.meaning(PAIR) != WORLD.meaning(WORLD.swap(PAIR))
    for scene in WORLD.pairs():
        assert WORLD.split(scene) == WORLD.split(WORLD.meaning(scene))


def test_splits_do_not_depend_on_the_machine():
    assert Counter(map(WORLD.split, WORLD.singles())) == {"seen": 107, "unseen": 21, "never": 32}
    assert Counter(map(WORLD.split, WORLD.pairs())) == {"seen": 3266, "unseen": 574, "never": 2240}


def test_unseen_scenes_are_made_of_seen_parts():
    seen = [scene for scene in WORLD.singles() if WORLD.split(scene) == "seen"]
    parts = {(thing.shape, thing.colour) for scene in seen for thing in scene.things}
    assert len(parts) == len(WORLD.shapes) * (len(WORLD.colours) - 1)
    for shape, colour in WORLD.never.items():
        assert (shape, colour) not in parts


def test_scenes_alternate_and_do_not_repeat():
    stream = list(islice(scenes(WORLD, "unseen", np.random.default_rng(0)), 20))
    assert [len(scene.things) for scene in stream] == [1, 2] * 10
    assert len(set(stream)) == 20


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="'train'.*seen, unseen, never"):
        next(scenes(WORLD, "train", np.random.default_rng(0)))


def test_training_holds_seen_scenes_only(written):
    train = drawn(written / "train")
    assert {WORLD.split(scene) for scene in train} == {"seen"}
    assert sum(len(scene.things) for scene in train) == pytest.approx(5 / 3 * len(train), abs=3)


def test_training_shows_every_value_of_every_attribute(written):
    train = drawn(written / "train")
    assert {scene.background for scene in train} == set(WORLD.backgrounds)
    assert {scene.relation for scene in train} == {*WORLD.relations, ""}
    things = {thing for scene in train for thing in scene.things}
    assert {thing.size for thing in things} == {*WORLD.sizes, ""}
    assert len({(thing.shape, thing.colour) for thing in things}) == len(WORLD.shapes) * (len(WORLD.colours) - 1)


def test_a_pair_stands_beside_its_twin(written):
    groups = defaultdict(list)
    for place, sample in enumerate(samples(written / "train")):
        groups[sample["group"]].append((place, Scene.from_json(sample["scene"])))
    assert Counter(map(len, groups.values()))[2] > 200
    for (place, scene), *twins in groups.values():
        if twins:
            assert twins == [(place + 1, WORLD.swap(scene))]
        elif scene.relation:
            assert WORLD.split(WORLD.swap(scene)) != "seen"


@pytest.mark.parametrize("split", SPLITS)
def test_a_validation_split_holds_its_own_scenes(written, split):
    scenes_ = drawn(written / split)
    assert {WORLD.split(scene) for scene in scenes_} == {split}
    repeats = Counter(scenes_).values()
    assert len(scenes_) == SIZES["val_images"] and max(repeats) <= 6  # there are 10 unseen singles


def test_layout_is_img2datasets(written):
    shards = {folder: sorted(path.name for path in (written / folder).iterdir()) for folder in FOLDERS}
    assert shards.pop("train") == ["00000.tar", "00001.tar", "00002.tar"]
    assert list(shards.values()) == [["00000.tar"]] * 3
    train = list(samples(written / "train"))
    keys = [sample["key"] for sample in train]
    assert keys[:2] == ["000000000", "000000001"] and keys[500] == "000010000" and len(set(keys)) == 1101
    for sample in train[:50]:
        assert sample["text"] == sample["caption"] == WORLD.caption(Scene.from_json(sample["scene"]))
        assert sample["image"].size == (sample["width"], sample["height"]) == (32, 32)
        assert sample["image"].mode == "RGB" and sample["status"] == "success"


def test_the_seed_decides_the_bytes(written, tmp_path):
    few = {"images": 50, "val_images": 10, "per_shard": 30}
    for name, seed in {"first": 7, "again": 7}.items():
        write_shapes(tmp_path / name, world=WORLD, seed=seed, **few)
    for shard in (tmp_path / "first").rglob("*.tar"):
        within = shard.relative_to(tmp_path / "first")
        assert shard.read_bytes() == (tmp_path / "again" / within).read_bytes()
    assert drawn(tmp_path / "first" / "train")[:10] != drawn(written / "train")[:10]


def test_nothing_is_written_over(written):
    with pytest.raises(ValueError, match="not an empty folder"):
        write_shapes(written, world=WORLD, **SIZES)


def test_an_impossible_shard_size_is_named(tmp_path):
    with pytest.raises(ValueError, match="per_shard=20000"):
        write_shapes(tmp_path, world=WORLD, **SIZES | {"per_shard": 20_000})
    assert not any(tmp_path.iterdir())
