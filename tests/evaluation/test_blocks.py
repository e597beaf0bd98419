"""Blocks of pictures: the same bytes for the same pictures, whole or not there, and a changed file is noticed."""

import pytest
from PIL import Image

from open_kandinsky.evaluation import samples
from open_kandinsky.evaluation.samples import SampleBlock


def pictures(n, size=(5, 3)):
    made = []
    for i in range(n):
        image = Image.new("RGB", size, (i, 2 * i, 3 * i))
        image.putpixel((0, 0), (255, i, 0))
        made.append(image)
    return made


@pytest.mark.parametrize(("n", "size"), [(1, 1), (7, 3), (6, 3), (2, 5)])
def test_blocks_cover_the_list_once(n, size):
    made = samples.blocks(n, size)
    assert [row for block in made for row in block.rows] == list(range(n))
    assert all(len(block.rows) == size for block in made[:-1]) and [b.index for b in made] == list(range(len(made)))


@pytest.mark.parametrize(("n", "size"), [(0, 4), (4, 0)])
def test_no_pictures_and_no_size_are_refused(n, size):
    with pytest.raises(ValueError, match="at least 1 of each"):
        samples.blocks(n, size)


def test_pictures_come_back_as_they_were(tmp_path):
    block, made = SampleBlock(2, 10, 14), pictures(4)
    assert samples.marker(tmp_path, block) is None
    samples.write_block(tmp_path, block, made, {"seeds": [1, 2, 3, 4]})
    assert [image.tobytes() for image in samples.read_block(tmp_path, block)] == [image.tobytes() for image in made]
    about = samples.marker(tmp_path, block)
    assert about["seeds"] == [1, 2, 3, 4] and about["flat"] == []
    assert len(set(about["pixels_sha256"])) == 4


def test_the_same_pictures_are_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        samples.write_block(tmp_path / name, SampleBlock(0, 0, 3), pictures(3), {})
    a, b = ((tmp_path / name / "000000.tar").read_bytes() for name in ("a", "b"))
    assert a == b


def test_a_hash_is_of_pixels_and_size():
    wide, high = Image.new("RGB", (6, 2)), Image.new("RGB", (2, 6))
    assert wide.tobytes() == high.tobytes() and samples.pixels_sha256(wide) != samples.pixels_sha256(high)


def test_flat_pictures_are_listed(tmp_path):
    made = pictures(2) + [Image.new("RGB", (5, 3), "black")]
    samples.write_block(tmp_path, SampleBlock(0, 7, 10), made, {})
    assert samples.marker(tmp_path, SampleBlock(0, 7, 10))["flat"] == [9]


def cut(data):
    return data[:-600]


def bit(data):
    return data[:700] + bytes([data[700] ^ 1]) + data[701:]


@pytest.mark.parametrize("harm", [cut, bit, bytes.lower])
def test_a_file_that_has_changed_is_refused(tmp_path, harm):
    block = SampleBlock(0, 0, 3)
    samples.write_block(tmp_path, block, pictures(3), {})
    path = tmp_path / "000000.tar"
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(ValueError, match="000000.tar: not the file that was written; remove .*000000.json"):
        samples.read_block(tmp_path, block)
