"""A folder in COCO's shape is read as pycocotools and PIL would; what is missing is said at once."""

import hashlib
import json
import shutil
from collections import Counter

import numpy as np
import pytest
from fixtures import coco as maker
from fixtures.pictures import refused
from omegaconf import OmegaConf
from PIL import Image

from open_kandinsky.config import compose
from open_kandinsky.data.coco import CAPTIONS, IMAGES, Coco


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return maker.make(tmp_path_factory.mktemp("coco") / "set")


@pytest.fixture(scope="module")
def coco(folder):
    return Coco.open(folder)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def tree(folder):
    return json.loads((folder / "annotations" / "captions_val2014.json").read_text())


def rewrite(folder, **parts):
    (folder / "annotations" / "captions_val2014.json").write_text(json.dumps(tree(folder) | parts))


def pixels(image):
    return np.asarray(image)


def same(a, b):
    return (a.mode, a.size) == (b.mode, b.size) and bool((pixels(a) == pixels(b)).all())


def test_the_maker_makes_the_same_bytes_again(folder, tmp_path):
    again = maker.make(tmp_path / "again")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 41
    assert all(path.read_bytes() == (again / path.relative_to(folder)).read_bytes() for path in files)


def test_everything_of_the_file_sorted_by_id(folder, coco):
    images = {one["id"]: one for one in tree(folder)["images"]}
    texts = {one["id"]: one for one in tree(folder)["annotations"]}
    assert [image.id for image in coco.images] == sorted(images) and len(images) == 40
    assert [caption.id for caption in coco.captions] == sorted(texts) and len(texts) == 203
    assert all(image._asdict().items() <= images[image.id].items() for image in coco.images)
    assert all((c.image_id, c.text) == (texts[c.id]["image_id"], texts[c.id]["caption"].strip()) for c in coco.captions)


def test_texts_lose_only_what_is_at_their_ends(coco):
    texts = [caption.text for caption in coco.captions]
    assert all(text == text.strip() for text in texts)
    assert any("\n" in text for text in texts) and any("東京" in text for text in texts)
    assert max(map(len, texts)) > 600


def test_captions_of_an_image(coco):
    assert sorted(map(len, coco.captions_of.values())) == [5] * 38 + [6, 7]
    assert all(caption.image_id == id for id, of in coco.captions_of.items() for caption in of)
    assert all(list(of) == sorted(of) for of in coco.captions_of.values())
    assert sorted(caption for of in coco.captions_of.values() for caption in of) == coco.captions


def test_a_picture_is_what_pil_opens_in_rgb(folder):
    coco = Coco.open(folder)
    for image in coco.images:
        assert same(coco.picture(image.id), Image.open(folder / "val2014" / image.file_name).convert("RGB"))
    assert Counter(coco.converted.values()) == {"L": 3, "CMYK": 1}
    coco.picture(coco.images[3].id)
    assert Counter(coco.converted.values()) == {"L": 3, "CMYK": 1}  # of pictures, not of readings


def test_an_orientation_is_not_applied(folder, coco):
    turned = coco.images[maker.TURNED]
    assert Image.open(folder / "val2014" / turned.file_name).getexif()[maker.ORIENTATION] == 6
    assert coco.picture(turned.id).size == (turned.width, turned.height)


def test_shards_hold_the_same_pictures(folder, coco, tmp_path):
    sharded = Coco.open(maker.shards(folder, tmp_path / "shards"))
    assert sharded.sha256 == coco.sha256
    assert all(same(sharded.picture(image.id), coco.picture(image.id)) for image in coco.images)


def test_the_captions_may_lie_beside_the_pictures(copy, coco):
    (copy / "annotations" / "captions_val2014.json").rename(copy / "captions_val2014.json")
    assert Coco.open(copy).sha256 == coco.sha256


def test_the_hash_is_over_lines_sorted_by_id(folder, coco):
    names = {one["id"]: one["file_name"] for one in tree(folder)["images"]}
    rows = sorted((a["image_id"], a["id"], a["caption"].strip()) for a in tree(folder)["annotations"])
    text = "".join(f"{image}\t{names[image]}\t{id}\t{caption}\n" for image, id, caption in rows)
    assert coco.sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("change", [{"caption": "another"}, {"id": 1}])
def test_another_annotation_is_another_set(copy, coco, change):
    first, *others = tree(copy)["annotations"]
    rewrite(copy, annotations=[*others, first])
    assert Coco.open(copy).sha256 == coco.sha256
    rewrite(copy, annotations=[first | change, *others])
    assert Coco.open(copy).sha256 != coco.sha256


def test_an_image_without_a_caption_counts_in_the_hash(copy, coco):
    kept = coco.images[0].id
    rewrite(copy, annotations=[a for a in tree(copy)["annotations"] if a["image_id"] == kept])
    some = Coco.open(copy)
    rewrite(copy, images=[image for image in tree(copy)["images"] if image["id"] == kept])
    assert Coco.open(copy).sha256 != some.sha256


def test_a_smaller_set_is_one_and_says_that_it_is(coco):
    assert not coco.is_val2014


def test_val2014_is_known_by_its_counts(coco, monkeypatch):
    for name, parts in {"IMAGES": coco.images, "CAPTIONS": coco.captions}.items():
        assert not coco.is_val2014
        monkeypatch.setattr(f"open_kandinsky.data.coco.folder.{name}", len(parts))
    assert coco.is_val2014


def test_counts_stand_in_the_config_as_in_the_code():
    published = OmegaConf.to_container(compose.compose("coco"))["published"]
    assert (published["images"], published["captions"]) == (IMAGES, CAPTIONS) == (40504, 202654)


def test_no_folder(tmp_path):
    refused("none: no such folder; no picture in val2014/. `make coco` .* coco to=", Coco.open, tmp_path / "none")


def test_an_empty_folder_is_told_what_goes_where(tmp_path):
    told = "captions_val2014.json is missing, here and in .*annotations; no picture in val2014/. `make coco`"
    refused(told, Coco.open, tmp_path)


def test_pictures_without_captions(copy):
    shutil.rmtree(copy / "annotations")
    refused("captions_val2014.json is missing.*hold 40 pictures. `make coco`", Coco.open, copy)


def test_missing_pictures_are_counted_and_some_are_named(copy, coco):
    names = [image.file_name for image in coco.images[4:9]]
    for name in names:
        (copy / "val2014" / name).unlink()
    told = rf"5 of 40 pictures are missing \({', '.join(names[:3])}, \.\.\.\); .*hold 35 pictures. `make coco`"
    refused(told, Coco.open, copy)


def test_a_shard_that_is_cut_short(folder, tmp_path):
    out = maker.shards(folder, tmp_path / "shards")
    shard = out / "val2014" / "00001.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    refused("00001.tar: cut short or no tar", Coco.open, out)


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}', '{"images": [{"id": 1}], "annotations": []}', "1"])
def test_a_file_that_is_no_captions(copy, text):
    (copy / "annotations" / "captions_val2014.json").write_text(text)
    refused("captions_val2014.json: not COCO's captions, or cut short .*`make coco`", Coco.open, copy)


def test_annotations_that_contradict_themselves(copy):
    images, annotations = tree(copy)["images"], tree(copy)["annotations"]
    rewrite(copy, images=images + images[:1])
    refused("1 image ids stand there twice", Coco.open, copy)
    rewrite(copy, images=images, annotations=annotations + annotations[:2])
    refused("2 caption ids stand there twice", Coco.open, copy)
    rewrite(copy, annotations=[*annotations, {"id": 1, "image_id": 2, "caption": ""}])
    refused(r"1 captions are of images that it does not list \(1\)", Coco.open, copy)


def test_a_picture_that_is_not_there(coco):
    refused("image_id=7: .* lists no such image", coco.picture, 7)


def test_a_picture_that_is_damaged(copy, coco):
    path = copy / "val2014" / coco.images[0].file_name
    path.write_bytes(path.read_bytes()[:-200])
    refused(f"{path.name} in .*: no whole image .*`make coco`", Coco.open(copy).picture, coco.images[0].id)


def test_a_picture_that_was_resized(copy, coco):
    image = coco.images[1]
    Image.new("RGB", (64, 64)).save(copy / "val2014" / image.file_name)
    told = f"64x64 pixels, {image.width}x{image.height} are listed; the images are wanted as downloaded"
    refused(told, Coco.open(copy).picture, image.id)
