"""How many samples each shard has: counted once, kept, and counted anew where a shard has changed."""

import json
import logging
import os
import threading
from functools import partial

import fsspec
import pytest
from fixtures.shards import sample, write_folder, write_tar
from fixtures.web import serving

from open_kandinsky.data.tar import reader
from open_kandinsky.data.tar.index import Indexer, ShardIndex, count_stats
from open_kandinsky.data.tar.opening import shard_urls


class Counter:
    """Counts as tar.count does, and remembers of what."""

    def __init__(self):
        self.asked = []

    def count(self, url):
        self.asked.append(url)
        return reader.count(url)


def indexer(tmp_path, count, threads=2):
    return Indexer(folder=str(tmp_path / "index"), threads=threads, count=count)


def test_each_shard_is_counted_once(tmp_path):
    urls = shard_urls(write_folder(tmp_path / "a", [3, 1, 7])) + shard_urls(write_folder(tmp_path / "b", [2]))
    counter = Counter()
    index = indexer(tmp_path, counter.count)(urls)
    assert (index.urls, index.counts, index.problems) == (urls, [3, 1, 7, 2], {})
    assert sorted(counter.asked) == urls
    assert indexer(tmp_path, counter.count)(urls) == index
    some = indexer(tmp_path, counter.count)([urls[3], urls[0]])
    assert (some.urls, some.counts) == ([urls[3], urls[0]], [2, 3]), "another list of the same shards"
    assert len(counter.asked) == 4
    write_tar(tmp_path / "b" / "9.tar", {"x": sample(0)})
    assert indexer(tmp_path, counter.count)(shard_urls(str(tmp_path / "b"))).counts == [2, 1]
    assert counter.asked[4:] == [str(tmp_path / "b" / "9.tar")], "only the one that is new"
    assert not [path for path in (tmp_path / "index").iterdir() if path.suffix != ".json"], "no claim is left"


@pytest.mark.parametrize("change", ["more samples", "only touched"])
def test_a_shard_that_changed_is_counted_again_by_name(tmp_path, change, caplog):
    urls = shard_urls(write_folder(tmp_path / "a", [3, 1, 7]))
    counter = Counter()
    index = indexer(tmp_path, counter.count)(urls)
    if change == "more samples":
        write_tar(tmp_path / "a" / "00001.tar", {f"{at}": sample(at) for at in range(5)})
    else:
        os.utime(urls[1], ns=(1, 1))
    counter.asked.clear()
    with caplog.at_level(logging.WARNING):
        again = indexer(tmp_path, counter.count)(urls)
    assert counter.asked == [urls[1]] and f"1 shard(s) have changed and are counted again: {urls[1]}" in caplog.text
    assert again.counts == [3, 5 if change == "more samples" else 1, 7]
    assert (again.identity == index.identity) == (change == "only touched")


def test_the_identity_is_of_names_and_counts_in_order():
    index = ShardIndex(["/a/0.tar", "/a/1.tar"], [3, 4])
    assert index.identity == ShardIndex(["s3://b/0.tar", "s3://b/1.tar"], [3, 4]).identity, "moved as a whole"
    others = [(["/a/1.tar", "/a/0.tar"], [3, 4]), (["/a/0.tar", "/a/1.tar"], [4, 3]), (["/a/0.tar"], [3])]
    assert len({index.identity, *(ShardIndex(*other).identity for other in others)}) == 4


def test_shards_that_break_off_are_named_each_time(tmp_path, caplog):
    urls = shard_urls(write_folder(tmp_path / "a", [4, 4, 4]))
    with open(urls[1], "r+b") as file:
        file.truncate(7000)
    (tmp_path / "a" / "00002.tar").write_bytes(b"")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            index = indexer(tmp_path, reader.count)(urls)
        assert index.counts == [4, 3, 0] and list(index.problems) == urls[1:]
        assert "2 shard(s) are damaged" in caplog.text and urls[1] in caplog.text and urls[2] in caplog.text


def test_a_missing_shard_is_named_and_the_others_kept(tmp_path):
    files = {"/0.tar": (open(write_folder(tmp_path / "a", [3]) + "/00000.tar", "rb")).read()}
    counter = Counter()
    with serving(files) as web:
        urls = [f"{web.address}/{at}.tar" for at in range(2)]
        with pytest.raises(ValueError, match=r"1 shard\(s\) are not there: .*/1.tar"):
            indexer(tmp_path, counter.count)(urls)
        assert indexer(tmp_path, counter.count)(urls[:1]).counts == [3]
    assert sorted(counter.asked) == urls, "the first was kept"


def test_a_shard_that_cannot_be_counted_is_named_and_the_others_kept(tmp_path):
    urls = shard_urls(write_folder(tmp_path / "a", [3, 1]))

    def failing(url):
        if url == urls[1]:
            raise OSError("stale file handle")
        return reader.count(url)

    with pytest.raises(OSError, match="stale file handle; 1 shard.*run it again.*00001.tar"):
        indexer(tmp_path, failing)(urls)
    [kept] = (tmp_path / "index").glob("*.json")
    assert list(json.loads(kept.read_text())) == urls[:1]


def test_an_index_that_was_stopped_goes_on(tmp_path, monkeypatch):
    from open_kandinsky.data.tar import index as module

    monkeypatch.setattr(module, "SAVED_EVERY", 2)
    urls = shard_urls(write_folder(tmp_path / "a", [1] * 7))
    counter = Counter()

    def stopped(url):
        if url == urls[5]:
            raise KeyboardInterrupt
        return counter.count(url)

    stopped.__qualname__ = Counter.count.__qualname__
    with pytest.raises(KeyboardInterrupt):
        indexer(tmp_path, stopped, threads=1)(urls)
    before = len(counter.asked)
    assert indexer(tmp_path, counter.count)(urls).counts == [1] * 7
    assert set(counter.asked[before:]) == set(urls[4:]), "four were kept"


def test_one_counts_and_the_others_wait(tmp_path):
    urls = shard_urls(write_folder(tmp_path / "a", [2] * 5))
    counter, found = Counter(), []
    threads = [
        threading.Thread(target=lambda: found.append(indexer(tmp_path, counter.count)(urls).counts)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [[2] * 5] * 3 and sorted(counter.asked) == urls


def test_stores_without_a_listing_of_files_are_trusted_and_others_compared(tmp_path):
    body = open(write_folder(tmp_path / "a", [3]) + "/00000.tar", "rb").read()
    more = open(write_folder(tmp_path / "b", [4]) + "/00000.tar", "rb").read()
    memory = fsspec.filesystem("memory")
    memory.pipe("/set/0.tar", body)
    assert indexer(tmp_path, reader.count)(["memory://set/0.tar"]).counts == [3]
    memory.pipe("/set/0.tar", more)
    assert indexer(tmp_path, reader.count)(["memory://set/0.tar"]).counts == [4]
    memory.store.clear()
    with serving({"/0.tar": body}) as web:
        assert indexer(tmp_path, reader.count)([f"{web.address}/0.tar"]).counts == [3]
        web.files["/0.tar"] = more
        web.sent.clear()
        assert indexer(tmp_path, reader.count)([f"{web.address}/0.tar"]).counts == [3] and not web.sent


def test_the_stats_of_img2dataset_save_the_reading(tmp_path):
    folder = write_folder(tmp_path / "a", [3, 4, 5, 6])
    files = {f"/{at}.tar": open(f"{folder}/0000{at}.tar", "rb").read() for at in range(4)}
    files["/0_stats.json"] = json.dumps({"count": 10, "successes": 3, "failed_to_download": 7}).encode()
    files["/1_stats.json"] = b"{}"
    files["/2_stats.json"] = b"<html>"
    with serving(files) as web:
        urls = [f"{web.address}/{at}.tar" for at in range(4)]
        assert indexer(tmp_path, partial(count_stats))(urls).counts == [3, 4, 5, 6]
        assert "/0.tar" not in {path for path, _ in web.sent}
        assert {f"/{at}.tar" for at in (1, 2, 3)} <= {path for path, _ in web.sent}
        web.files["/0_stats.json"] = json.dumps({"successes": 9}).encode()
        assert indexer(tmp_path, reader.count)(urls).counts == [3, 4, 5, 6], "counts of another way are not taken over"


def test_an_index_of_many_shards_is_read_and_not_counted(tmp_path):
    urls = [f"https://host/set/{at:06d}.tar" for at in range(20_000)]

    def refuse(url):
        raise AssertionError(f"{url} was counted")

    made = indexer(tmp_path, refuse)
    path = made.file("https://host/set")
    path.parent.mkdir()
    path.write_text(json.dumps({url: [at % 7, None, None, None] for at, url in enumerate(urls)}))
    index = made(urls)
    assert sum(index.counts) == sum(at % 7 for at in range(20_000)) and len(index.identity) == 64


def test_counts_of_another_kind_are_another_file(tmp_path):
    made = [indexer(tmp_path, count).file("s3://b") for count in (reader.count, count_stats, partial(count_stats))]
    assert len(set(made)) == 2
