"""A folder of pictures is, byte for byte, a tar of them; what is wrong in it is named or counted."""

import io
import json
import os
import random
import tarfile

import pytest
from PIL import Image

from open_kandinsky.data import folder as folders
from open_kandinsky.data.folder import FolderTar, folder_urls, pairs_of, version_of


@pytest.fixture(autouse=True)
def anew():
    pairs_of.cache_clear()
    yield
    pairs_of.cache_clear()


def fill(root, names, captions=True):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16 + number, 16), (number, 0, 0)).save(path)
        if captions:
            path.with_suffix(".txt").write_text(f"picture {number}")
    return root


def samples(url):
    """key -> kind -> bytes, by Python's own reader of tars."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(FolderTar(url).readall())) as tar:
        for member in tar:
            place, _, name = member.name.rpartition("/")
            key, _, kind = name.partition(".")
            found.setdefault(f"{place}/{key}" if place else key, {})[kind] = tar.extractfile(member).read()
    return found


def test_it_is_the_tar_of_its_files(tmp_path):
    fill(tmp_path, ["b.png", "a.jpg", "deep/c.webp", ".hidden/d.png"])
    found = samples(folder_urls(f"folder:{tmp_path}")[0])
    assert list(found) == ["a", "b", "deep/c"]
    assert found["b"] == {"png": (tmp_path / "b.png").read_bytes(), "txt": b"picture 0"}
    assert found["deep/c"]["webp"] == (tmp_path / "deep/c.webp").read_bytes()


def test_any_part_of_it_can_be_read_in_any_order(tmp_path):
    fill(tmp_path, [f"{number}.png" for number in range(20)])
    url = folder_urls(f"folder:{tmp_path}")[0]
    whole, draws = FolderTar(url).readall(), random.Random(0)
    with io.BufferedReader(FolderTar(url), 1000) as stream:
        assert stream.seek(0, io.SEEK_END) == len(whole) == version_of(url)[0]
        for _ in range(200):
            start, count = draws.randrange(len(whole)), draws.randrange(3000)
            stream.seek(start)
            assert stream.read(count) == whole[start : start + count]


def test_a_thousand_pictures_make_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "PER_SHARD", 4)
    fill(tmp_path, [f"{number:02d}.png" for number in range(10)])
    urls = folder_urls(f"folder:{tmp_path}")
    assert [url.rpartition("/")[2] for url in urls] == ["00000", "00001", "00002"]
    assert [len(samples(url)) for url in urls] == [4, 4, 2]


@pytest.mark.parametrize("name", ["metadata.jsonl", "train.csv"])
@pytest.mark.parametrize(("file", "caption"), [("file_name", "text"), ("image_name", "caption")])
def test_captions_come_from_one_table(tmp_path, name, file, caption):
    fill(tmp_path, ["a.png", "b.png"], captions=False)
    rows = [{file: "a.png", caption: "an \u00e4pple, red", "score": "0.5"}, {file: "gone.png", caption: "nothing"}]
    if name.endswith("jsonl"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        lines = [f"{file},{caption},score", 'a.png,"an \u00e4pple, red",0.5', "gone.png,nothing,"]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    found = samples(folder_urls(f"folder:{tmp_path}")[0])
    assert json.loads(found["a"]["json"])["caption"] == "an \u00e4pple, red"
    assert json.loads(found["a"]["json"])["score"] == "0.5"
    assert set(found["b"]) == {"png"} and set(found["gone"]) == {"json"}


def test_keys_are_apart_whatever_the_names(tmp_path):
    names = ["a.b.png", "a_b.png", "a.jpg", "a.png", f"{'long' * 50}.png", f"{'long' * 50}.jpg", "\u00fcber.png"]
    fill(tmp_path, names)
    found = samples(folder_urls(f"folder:{tmp_path}")[0])
    assert len(found) == len(names)
    assert all(set(parts) == {next(iter(set(parts) - {"txt"})), "txt"} for parts in found.values())


def test_a_file_that_changed_under_way_is_no_part_of_a_shard(tmp_path):
    fill(tmp_path, ["a.png"])
    url = folder_urls(f"folder:{tmp_path}")[0]
    before, stream = version_of(url), FolderTar(url)
    (tmp_path / "a.png").write_bytes(b"shorter")
    with pytest.raises(OSError, match="a.png: 7 bytes, and"):
        stream.readall()
    assert version_of(url) != before


def test_a_table_that_changed_is_another_version(tmp_path):
    fill(tmp_path, ["a.png"], captions=False)
    versions = set()
    for caption in ("one", "two"):
        (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": caption}))
        pairs_of.cache_clear()
        versions.add(version_of(folder_urls(f"folder:{tmp_path}")[0]))
    assert len(versions) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no picture in it .* it holds nothing"),
        ({"notes.md": b"x"}, "no picture in it .* it holds notes.md"),
        ({"a.png": b"x", "metadata.jsonl": b"[1]"}, "is no row"),
        ({"a.png": b"x", "metadata.jsonl": b"{"}, "metadata.jsonl: cannot be read"),
        (
            {"a.png": b"x", "all.csv": b"name,words\na.png,b\n"},
            "columns are name, words; it needs one of file_name",
        ),
        (
            {"a.png": b"x", "all.csv": b"file,text\n", "more.csv": b""},
            "all.csv and more.csv; captions are read",
        ),
        ({"a.png": b"x", "all.csv": b"\xff\xfe\x00"}, "all.csv: cannot be read"),
    ],
)
def test_a_folder_that_cannot_be_read_says_why(tmp_path, files, message):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        folder_urls(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match="no such folder"):
        folder_urls(f"folder:{tmp_path / 'none'}")


def test_links_out_of_the_folder_are_not_walked(tmp_path):
    fill(tmp_path / "other", ["secret.png"])
    fill(tmp_path / "mine", ["a.png"])
    os.symlink(tmp_path / "other", tmp_path / "mine" / "link")
    assert list(samples(folder_urls(f"folder:{tmp_path / 'mine'}")[0])) == ["a"]
