"""Shards in every state of disrepair, on a server that fails too: what is left is read, and all else is counted."""

import json
import random
from collections import Counter

import pyarrow
import pytest
from fixtures.large import one_bit_png
from fixtures.shards import picture, sample, write_tar
from fixtures.web import serving
from pyarrow import parquet

from open_kandinsky.data.pairs import AspectBuckets, Captions, Filters, Pairs
from open_kandinsky.data.tar import opening, reader
from open_kandinsky.data.tar.index import Indexer, ShardIndex
from open_kandinsky.data.tar.reader import CUT, GONE, TarShards
from open_kandinsky.data.tar.sample import BROKEN, MISSING, NoSidecars, ParquetSidecars, parquet_of
from open_kandinsky.data.tar.stats import SampleStats
from open_kandinsky.data.transforms import Pixels

SHARDS, EACH = 6, 40
CORRUPT = [  # 5 %: two in each shard
    ("unreadable image", {"png": b"<html>404</html>"}),
    ("unreadable image", {"png": picture(3)[:-30]}),
    ("missing image", {"png": None}),
    ("zero-byte member", {"png": b""}),
    ("unreadable json", {"json": b"{"}),
    ("missing caption", {"txt": None, "json": b"{}"}),
    ("zero-byte member", {"txt": b"", "json": b"{}"}),
    ("unreadable caption", {"txt": b"\xff"}),
]


def write_sidecar(shard, **columns):
    parquet.write_table(pyarrow.table(columns), parquet_of(str(shard)))


@pytest.fixture
def files(tmp_path):
    """Shards and side files by name, and how many samples each reason takes out of them."""
    expected, fault = Counter(), 0
    huge = one_bit_png(30_000, 30_000)
    for shard in range(SHARDS):
        samples, keys, scores = {}, [], []
        for row in range(EACH):
            key = f"{shard:05d}{row:04d}"
            changes = {}
            if row in (7, 23):
                reason, changes = CORRUPT[fault % len(CORRUPT)]
                expected[reason] += 1
                fault += 1
            if (shard, row) == (0, 11):
                changes = {"png": huge}
                expected["unreadable image"] += 1
            if row % 10 == 0:
                changes = {"json": json.dumps({"caption": "x", "similarity": 0.1}).encode()}
                expected["filtered out: similarity"] += 1
            samples[key] = sample(row, **changes)
            keys.append(key)
            scores.append(0.1 if row == 31 else None)
        expected["filtered out: similarity"] += shard not in (1, 2)  # those of the side files
        path = tmp_path / "set" / f"{shard:05d}.tar"
        write_tar(path, samples)
        if shard != 1:
            write_sidecar(path, key=keys, similarity=scores)
    (tmp_path / "set" / "00002.parquet").write_bytes(b"PAR1 and nothing more")
    return {f"/{path.name}": path.read_bytes() for path in (tmp_path / "set").iterdir()}, expected


def pairs():
    return Pairs(
        fields={"pixels": Pixels(size=32)},
        filters=Filters(
            min_side=None,
            min_pixels=None,
            max_aspect=None,
            known={},
            if_known={"similarity": [0.28, None]},
            labels={},
        ),
        captions=Captions(weights={"txt": 1.0, "caption": 0.0}),
        buckets=AspectBuckets(size=32, step=8, max_aspect=2.0, field="pixels"),
    )


def trained_on(shards, tally):
    """Every sample of an epoch, in two streams a shard, as a loader would have them."""
    prepare, keys = pairs(), []
    for shard, count in enumerate(shards.counts):
        for wanted in (range(count // 3), range(count // 3, count)):
            for _, raw in shards.read(shard, wanted, tally):
                try:
                    row = prepare.row(raw, prepare.bucket(raw), random.Random(0))
                except ValueError as error:
                    reason, detail = error.args
                    tally.add(reason, key=raw.key, shard=raw.url, detail=detail)
                else:
                    tally.good()
                    keys.append(row["key"])
                    assert row["pixels"].shape == (3, 24, 40), "12 x 9 pixels"
    return keys


def counted(tally):
    return {name: reason.count for name, reason in tally.reasons.items()}


def test_training_goes_on_and_the_counts_are_exact(tmp_path, files, monkeypatch):
    monkeypatch.setattr(opening, "PAUSE", 0.001)
    contents, expected = files
    turn = iter(range(10**9))
    with serving(contents, fault=lambda path, body: ("cut" if next(turn) % 5 == 0 else None) if body else None) as web:
        urls = [f"{web.address}/{shard:05d}.tar" for shard in range(SHARDS)]
        index = Indexer(folder=str(tmp_path / "index"), threads=2, count=reader.count)(urls)
        assert index.counts == [EACH] * SHARDS
        tally = SampleStats(max_bad_share=0.1)
        keys = trained_on(TarShards(index, ParquetSidecars(columns=["similarity"])), tally)
    assert counted(tally) == dict(expected)
    assert tally.seen == SHARDS * EACH == len(keys) + tally.bad + tally.filtered
    assert (tally.bad, len(keys), len(set(keys))) == (2 * SHARDS + 1, 199, 199)
    assert {name: len(shards) for name, shards in tally.remarks.items()} == {MISSING: 1, BROKEN: 1}
    report = tally.report()
    assert report.startswith("13 of 240 samples cannot be used, 28 are filtered out")
    assert f"{MISSING}: 1 shard(s) ({urls[1]})" in report and f"{BROKEN}: 1 shard(s) ({urls[2]})" in report


def test_shards_that_lose_samples_while_they_are_used(tmp_path, files):
    """Indexed whole; then one is cut, one is written anew with fewer samples, and one is gone."""
    contents, _ = files
    for name, body in contents.items():
        (tmp_path / name[1:]).write_bytes(body)
    urls = [str(tmp_path / f"{shard:05d}.tar") for shard in range(SHARDS)]
    shards = TarShards(ShardIndex(urls, [EACH] * SHARDS), NoSidecars())
    (tmp_path / "00003.tar").write_bytes(
        contents["/00003.tar"][: 3 * 1024 * 10 + 700]
    )  # ten samples, and half a header
    write_tar(tmp_path / "00004.tar", {f"{row}": sample(row) for row in range(25)})
    (tmp_path / "00005.tar").unlink()
    tally = SampleStats(max_bad_share=1.0)
    keys = trained_on(shards, tally)
    assert counted(tally)[CUT] == 30 and counted(tally)[GONE] == 15 + 40
    assert tally.seen == SHARDS * EACH == len(keys) + tally.bad + tally.filtered


# --- side files ---


def test_columns_join_by_key(tmp_path):
    url = str(tmp_path / "0.tar")
    write_sidecar(url, key=["b", "a"], similarity=[0.1, None], all_captions=[["x", "y"], None], width=[3, 4])
    tally = SampleStats(max_bad_share=0.0)
    facts = ParquetSidecars(columns=["similarity", "all_captions", "not there"]).facts(url, tally)
    assert facts.of("0/deep/b") == {"similarity": 0.1, "all_captions": ["x", "y"]}
    assert facts.of("0/a") == {} == facts.of("0/c") and tally.clean


@pytest.mark.parametrize("content", [b"", b"no parquet", None])
def test_what_is_no_side_file_is_remarked_once(tmp_path, content):
    url = str(tmp_path / "0.tar")
    if content is None:
        write_sidecar(url, nokey=[1])
    else:
        (tmp_path / "0.parquet").write_bytes(content)
    tally = SampleStats(max_bad_share=0.0)
    for _ in range(3):
        assert ParquetSidecars(columns=["similarity"]).facts(url, tally).of("0/a") == {}
    assert tally.remarks == {BROKEN: {url}} and not tally.bad
    tally.check()


@pytest.mark.parametrize("url", ["pipe:cat 0.tar", "0.tgz"])
def test_beside_what_no_side_file_lies(url):
    tally = SampleStats(max_bad_share=0.0)
    ParquetSidecars(columns=["similarity"]).facts(url, tally)
    assert tally.remarks == {MISSING: {url}}


def test_no_columns_are_refused():
    with pytest.raises(ValueError, match=r"data.parquet_columns=\[\]: .* or null"):
        ParquetSidecars(columns=[])


def test_the_facts_come_with_the_sample(tmp_path):
    url = write_tar(tmp_path / "0.tar", {"a": sample(1), "b": sample(2)})
    write_sidecar(url, key=["a"], similarity=[0.5])
    shards = TarShards(ShardIndex([url], [2]), ParquetSidecars(columns=["similarity"]))
    found = [raw for _, raw in shards.read(0, range(2), SampleStats(max_bad_share=0.0))]
    assert [dict(raw.facts) for raw in found] == [{"similarity": 0.5}, {}]
