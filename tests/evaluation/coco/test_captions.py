"""A caption list is what its rule says, on every machine, and what is published is read as published."""

import hashlib
import json
import shutil
from collections import Counter

import pytest
from fixtures import coco as maker
from fixtures.pictures import refused

from open_kandinsky.data.coco import Coco
from open_kandinsky.evaluation.captions import AnyCaption, Caption, Lines, Listed, OnePerImage, draw, sha256

T2I = {"image_id_column": "image_id", "caption_column": "text", "separator": ",", "source": "its release page"}
DALLEVAL = T2I | {"image_id_column": "uid", "caption_column": "caption"}
MLPERF = T2I | {"caption_column": "caption", "separator": "\t"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return maker.make(tmp_path_factory.mktemp("coco") / "set")


@pytest.fixture(scope="module")
def coco(folder):
    return Coco.open(folder)


def by_hash(ids, seed):
    digests = {hashlib.sha256(str(seed).encode() + b":" + str(id).encode()).hexdigest(): id for id in ids}
    return [digests[digest] for digest in sorted(digests)]


def pairs(captions):
    return [(caption.image_id, caption.text) for caption in captions]


@pytest.fixture
def published(tmp_path):
    def published(text, name="list.csv"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return published


def test_the_order_of_a_seed_never_changes():
    """As `printf %s:%s SEED ID | sha256sum` and `sort` give it."""
    assert draw(range(1, 11), 10, seed=0) == [7, 4, 9, 10, 3, 8, 2, 6, 5, 1]
    assert draw(range(1, 11), 10, seed=1) == by_hash(range(1, 11), 1) != draw(range(1, 11), 10, seed=0)


def test_one_per_image(coco):
    made = OnePerImage(n=30, seed=3)(coco)
    ids = by_hash([image.id for image in coco.images], 3)[:30]
    texts = [{caption.id: caption.text for caption in coco.captions_of[id]} for id in ids]
    assert pairs(made) == [(id, text[by_hash(text, 3)[0]]) for id, text in zip(ids, texts, strict=True)]
    assert [caption.index for caption in made] == list(range(30))


def test_each_of_an_images_captions_can_be_drawn(coco):
    """Over many seeds, about as often: 5 captions, 600 draws, 120 each, 9.8 a standard deviation."""
    image = next(image for image in coco.images if len(coco.captions_of[image.id]) == 5)
    rule = (OnePerImage(n=1, seed=seed) for seed in range(600))
    counts = Counter(one.choose(coco.captions_of[image.id]) for one in rule)
    assert len(counts) == 5 and all(abs(count - 120) < 45 for count in counts.values())


def test_any_caption(coco):
    made = AnyCaption(n=100, seed=2)(coco)
    by_id = {caption.id: caption for caption in coco.captions}
    wanted = [by_id[id] for id in by_hash(by_id, 2)[:100]]
    assert pairs(made) == [(caption.image_id, caption.text) for caption in wanted]
    assert max(Counter(caption.image_id for caption in made).values()) > 1


@pytest.mark.parametrize("rule", [OnePerImage, AnyCaption])
def test_a_shorter_list_is_the_beginning_of_a_longer_one(rule, coco):
    assert rule(n=7, seed=0)(coco) == rule(n=40, seed=0)(coco)[:7]
    assert pairs(rule(n=7, seed=0)(coco)) != pairs(rule(n=7, seed=1)(coco))


def test_the_order_of_cocos_file_does_not_matter(folder, coco, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = copy / "annotations" / "captions_val2014.json"
    tree = json.loads(file.read_text())
    file.write_text(json.dumps(tree | {"images": tree["images"][::-1], "annotations": tree["annotations"][::-1]}))
    for rule in (OnePerImage(n=20, seed=5), AnyCaption(n=20, seed=5)):
        assert rule(Coco.open(copy)) == rule(coco)


@pytest.mark.parametrize("rule, there", [(OnePerImage, "40 images with captions"), (AnyCaption, "203 captions")])
@pytest.mark.parametrize("n", [0, 204, 30_000])
def test_more_than_there_are(rule, there, n, coco):
    refused(f"n={n}: .* has {there}; ask for 1 to", rule(n=n, seed=0), coco)


def test_an_image_without_a_caption_is_not_drawn(folder, coco, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = copy / "annotations" / "captions_val2014.json"
    tree, silent = json.loads(file.read_text()), coco.images[0].id
    tree["annotations"] = [one for one in tree["annotations"] if one["image_id"] != silent]
    file.write_text(json.dumps(tree))
    assert silent not in {caption.image_id for caption in OnePerImage(n=39, seed=0)(Coco.open(copy))}


def test_t2ibenchmarks_table(coco, published):
    a, b = coco.images[1].id, coco.images[0].id
    file = published(f'image_id,text\n{a},"A cat, and a dog. "\n{b},東京\n{a},again\n')
    assert Listed(file=file, **T2I)(coco) == [
        Caption(0, a, "A cat, and a dog."),
        Caption(1, b, "東京"),
        Caption(2, a, "again"),
    ]


def test_dallevals_table(coco, published):
    id = coco.images[2].id
    file = published(f"uid,caption\n{id}_mscoco_3,A bus.\n{id:06d}_mscoco_0,A car\n")
    assert pairs(Listed(file=str(file), **DALLEVAL)(coco)) == [(id, "A bus."), (id, "A car")]


def test_mlperfs_table_as_pandas_writes_it(coco, published):
    id = coco.images[3].id
    file = published(f'image_id\tid\tcaption\n{id}\t17\t"A ""red"" bus\tand more"\n{id}\t19\tA bus, blue\n', "l.tsv")
    assert pairs(Listed(file=file, **MLPERF)(coco)) == [(id, 'A "red" bus\tand more'), (id, "A bus, blue")]


def test_a_byte_order_mark_is_no_part_of_a_column(coco, published):
    file = published(f"\ufeffimage_id,text\n{coco.images[0].id},A\n")
    assert len(Listed(file=file, **T2I)(coco)) == 1


def test_a_list_that_is_not_there(coco, tmp_path):
    for rule in (
        Listed(file=tmp_path / "no.csv", **T2I),
        Lines(file=tmp_path / "no.csv", n=1, source="its release page"),
    ):
        refused("no.csv: no such file; .* get it from its release page", rule, coco)


def test_columns_that_are_not_there(coco, published):
    file = published("imageid,text\n1,A\n")
    refused("no column 'image_id'; nearest 'imageid'; it has imageid, text", Listed(file=file, **T2I), coco)
    refused("no column 'image_id'; it has none", Listed(file=published(""), **T2I), coco)
    refused("no column 'image_id'; .* Is the separator right", Listed(file=published("image_id\ttext\n"), **T2I), coco)


def test_images_that_coco_does_not_have(coco, published):
    rows = "".join(f"{id},A\n" for id in (coco.images[0].id, 1, 2, 3, 4))
    told = r"4 of 5 rows name images that .* does not have \(1, 2, 3, \.\.\.\); is it a list of val2014"
    refused(told, Listed(file=published("image_id,text\n" + rows), **T2I), coco)


@pytest.mark.parametrize(
    "row, told", [("x,A", "'x' is no image id"), (",A", "'' is no image id"), ("{},", "no text"), ("{}", "no text")]
)
def test_a_row_that_lacks_something(coco, published, row, told):
    first = coco.images[0].id
    file = published(f"image_id,text\n{first},A\n{row.format(first)}\n")
    refused(f"list.csv, line 3: .*{told}", Listed(file=file, **T2I), coco)


def test_lines(coco, published):
    file = published("A cat \nA dog\nA bus\n")
    rule = Lines(file=file, n=2, source="GigaGAN's images")
    assert rule(coco) == [Caption(0, None, "A cat"), Caption(1, None, "A dog")]
    refused("n=4: .*list.csv has 3 lines", Lines(file=file, n=4, source=""), coco)


def test_a_file_that_is_no_text(coco, tmp_path):
    (tmp_path / "a").write_bytes(b"\xff\xfe\xfa")
    refused("not a text in UTF-8", Lines(file=tmp_path / "a", n=1, source="there"), coco)


def test_the_hash_is_over_lines_in_order(coco):
    made = [Caption(0, 42, "A cat"), Caption(1, None, "東京")]
    assert sha256(made) == hashlib.sha256("42\tA cat\n\t東京\n".encode()).hexdigest()
    assert sha256(made) != sha256(made[::-1])
    assert sha256(OnePerImage(n=9, seed=0)(coco)) == sha256(OnePerImage(n=9, seed=0)(coco))
