"""Shards of every state of repair: what is used, what is skipped and counted, and in which order it comes."""

import json
import logging
import multiprocessing
import os
import tarfile
from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest
import torch
from fixtures.shards import data, picture, sample, write_folder, write_tar

from open_kandinsky.data.shard_data import ShardData
from open_kandinsky.data.tar.opening import shard_urls
from open_kandinsky.data.tar.reader import read_samples
from open_kandinsky.data.tar.stats import SampleStats


def read(urls, max_bad_share=1.0):
    tally = SampleStats(max_bad_share=max_bad_share)
    return [found.key for found in read_samples(urls, tally)], tally


def keys_of(loader):
    return [batch["key"] for batch in loader]


@pytest.fixture(autouse=True)
def no_workers_left(monkeypatch):
    """A loader that a trainer has is closed by it; ours are closed here, lest hundreds of workers wait for the end."""
    begun, make = [], ShardData.train_dataloader
    monkeypatch.setattr(ShardData, "train_dataloader", lambda self: begun.append(make(self)) or begun[-1])
    yield
    for loader in begun:
        loader.close()


def flat(batches):
    return [one for batch in batches for one in batch]


def counts(tally):
    return {name: (reason.count, reason.keys) for name, reason in tally.reasons.items()}


# --- what a person writes ---


def test_every_way_to_name_shards(tmp_path):
    write_folder(tmp_path / "a", [1, 1, 1])
    every = [str(tmp_path / "a" / f"{shard:05d}.tar") for shard in range(3)]
    assert shard_urls(str(tmp_path / "a")) == every
    assert shard_urls(str(tmp_path / "a" / "*.tar")) == every
    assert shard_urls(str(tmp_path / "a" / "{00000..00002}.tar")) == every
    assert shard_urls([every[2], str(tmp_path / "a" / "0000[01].tar")]) == [every[2], *every[:2]]
    assert shard_urls("https://host/{0..1}.tar") == ["https://host/0.tar", "https://host/1.tar"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "no shards named"),
        ([], "no shards named"),
        ("empty", "empty': it is empty"),
        ("images", "holds cat.jpg"),
        ("outer", "did you mean '.*inner'"),
        ("shrads", "did you mean '.*shards'"),
        ("shards/{00000..00003}.tar", "00001.tar': did you mean '.*00000.tar'"),
        ("shards/*.tgz", "no shard at"),
        ("nowhere/at/all", "has no such name"),
        ("pipe:touch evidence", "allow_pipe"),
        (["shards", "pipe:touch evidence"], "allow_pipe"),
    ],
)
def test_what_names_no_shard_is_refused(tmp_path, monkeypatch, url, message):
    write_folder(tmp_path / "shards", [1])
    for folder in ("empty", "images", "outer"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "cat.jpg").touch()
    write_folder(tmp_path / "outer" / "inner", [1])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        shard_urls(url)
    assert not os.path.exists("evidence")


def test_a_pipe_that_was_allowed(tmp_path):
    shard = write_folder(tmp_path / "a", [3])
    found = read_samples(f"pipe:cat {shard}/00000.tar", SampleStats(max_bad_share=0.0), allow_pipe=True)
    assert len(list(found)) == 3


# --- reading ---


def test_samples_are_read_whole(tmp_path):
    samples = {
        "a": sample(1, jpg=picture(1, (40, 7), "JPEG"), png=None),
        "b": sample(2, txt=None),
        "c": sample(3, json=None),
    }
    samples["d"] = {"WEBP": picture(4, (5, 5), "WEBP"), "txt": b"  caf\xc3\xa9 \n"}
    url = write_tar(tmp_path / "x.tar", samples)
    tally = SampleStats(max_bad_share=0.0)
    found = list(read_samples(url, tally))
    assert [one.key for one in found] == ["x/a", "x/b", "x/c", "x/d"]
    assert [one.caption for one in found] == ["c1", "c2", "c3", "café"]
    assert [one.image.size for one in found] == [(40, 7), (12, 9), (12, 9), (5, 5)]
    assert [one.info for one in found] == [{"caption": "c1"}, {"caption": "c2"}, {}, {}]
    assert (tally.seen, tally.bad) == (4, 0)


def test_bad_samples_are_counted_by_reason(tmp_path):
    url = write_tar(
        tmp_path / "s.tar",
        {
            "ok1": sample(1),
            "noimage": sample(2, png=None),
            "nocaption": sample(3, txt=None, json=None),
            "nulls": sample(4, txt=None, json=b'{"caption": null}'),
            "zero": sample(5, png=b""),
            "zerotext": sample(6, txt=b""),
            "cut": sample(7, png=picture(7)[:-30]),
            "html": sample(8, png=b"<html>404</html>"),
            "json": sample(9, json=b'{"caption": "c'),
            "list": sample(10, json=b"[1]"),
            "latin": sample(11, txt=b"caf\xe9"),
            "thin": sample(12, png=picture(1, (1, 9))),
            "ok2": sample(13),
        },
    )
    keys, tally = read(url)
    assert keys == ["s/ok1", "s/ok2"]
    assert counts(tally) == {
        "missing image": (1, ["s/noimage"]),
        "missing caption": (2, ["s/nocaption", "s/nulls"]),
        "zero-byte member": (2, ["s/zero", "s/zerotext"]),
        "unreadable image": (3, ["s/cut", "s/html", "s/thin"]),
        "unreadable json": (2, ["s/json", "s/list"]),
        "unreadable caption": (1, ["s/latin"]),
    }
    assert (tally.seen, tally.bad) == (13, 11)
    report = tally.report()
    assert "11 of 13" in report and "zero-byte member: 2 (s/zero, s/zerotext)" in report and url in report


def test_a_tar_cut_anywhere_loses_only_what_was_cut(tmp_path):
    url = write_folder(tmp_path / "a", [4]) + "/00000.tar"
    whole = open(url, "rb").read()
    with tarfile.open(url) as tar:
        ends = [member.offset_data + (member.size + 511) // 512 * 512 for member in tar.getmembers()]
        texts = [member.offset_data + member.size for member in tar.getmembers()][1::3]  # with the json it is whole
    for cut in [*range(1, ends[-1], 173), *ends, *(end + 100 for end in ends)]:
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        keys, tally = read(str(tmp_path / "cut.tar"))
        assert len(keys) == sum(end <= cut for end in texts), f"cut at {cut}"
        assert counts(tally) == {"truncated or unreadable tar": (1, ["cut"])}, f"cut at {cut}"


def test_a_cut_tar_does_not_stop_the_next(tmp_path):
    folder = write_folder(tmp_path / "a", [3, 3, 3])
    middle = tmp_path / "a" / "00001.tar"
    middle.write_bytes(middle.read_bytes()[:4000])
    keys, tally = read(folder)
    assert Counter(key.split("/")[0] for key in keys) == {"00000": 3, "00001": 1, "00002": 3}
    assert str(middle) in tally.report()


@pytest.mark.parametrize("content", [b"", b"not a tar at all" * 100])
def test_what_is_no_tar_is_reported(tmp_path, content):
    folder = write_folder(tmp_path / "a", [2])
    (tmp_path / "a" / "bad.tar").write_bytes(content)
    keys, tally = read(folder)
    assert (len(keys), tally.bad) == (2, 1)


def test_a_garbled_header_is_not_taken_for_the_end(tmp_path):
    url = write_folder(tmp_path / "a", [4]) + "/00000.tar"
    with tarfile.open(url) as tar:
        second = tar.getmembers()[3].offset
    with open(url, "r+b") as file:
        file.seek(second)
        file.write(b"\xff" * 512)
    assert counts(read(url)[1]) == {"truncated or unreadable tar": (3, ["00000"])}


def test_too_many_bad_samples_stop_the_reading(tmp_path):
    bad = {f"{at:03d}": sample(at, **({"png": b"x"} if at % 4 == 0 else {})) for at in range(200)}
    url = write_tar(tmp_path / "s.tar", bad)
    tally = SampleStats(max_bad_share=0.2)
    with pytest.raises(ValueError, match=r"14 of 53(.|\n)*s/000, s/004(.|\n)*s.tar(.|\n)*max_bad_share=0.2"):
        list(read_samples(url, tally))
    assert len(read(url, max_bad_share=0.3)[0]) == 150
    assert len(tally.reasons["unreadable image"].keys) == 14
    assert len(read(url)[1].reasons["unreadable image"].keys) == 20


def test_few_samples_are_judged_at_the_end(tmp_path):
    url = write_tar(tmp_path / "s.tar", {"a": sample(1, png=b"x"), "b": sample(2)})
    with pytest.raises(ValueError, match="1 of 2"):
        read(url, max_bad_share=0.4)


# --- batches ---


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_sample_once_and_another_order_each_epoch(tmp_path, in_memory, workers):
    folder = write_folder(tmp_path / "a", [7, 1, 5, 11])
    make = dict(in_memory=in_memory, workers=workers)
    loader, again = data(folder, **make).train_dataloader(), data(folder, **make).train_dataloader()
    first, second = keys_of(loader), keys_of(loader)
    assert sorted(flat(first)) == sorted(flat(second)) == sorted(read(folder)[0])
    assert first != second
    assert [first, second] == [keys_of(again), keys_of(again)]
    assert first != keys_of(data(folder, **make, seed=1).train_dataloader())


def test_a_batch_keeps_image_caption_and_key_together(tmp_path):
    folder = write_folder(tmp_path / "a", [7, 1, 5, 11])
    for in_memory in (False, True):
        for batch in data(folder, in_memory=in_memory).train_dataloader():
            assert set(batch) == {"pixels", "caption", "key"}
            assert batch["pixels"].shape == (4, 3, 8, 8)
            values = ((batch["pixels"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
            assert batch["caption"] == [f"c{value}" for value in values]


def test_memory_is_the_same_for_any_number_of_workers(tmp_path):
    folder = write_folder(tmp_path / "a", [7, 1, 5, 11])
    alone, two = (data(folder, in_memory=True, workers=workers).table[0] for workers in (0, 2))
    assert alone.key == two.key and alone.caption == two.caption
    assert torch.equal(alone.columns["pixels"], two.columns["pixels"])


@pytest.mark.parametrize(
    "options",
    [
        {"in_memory": True},
        {},
        pytest.param({"workers": 2}, marks=pytest.mark.slow),
        pytest.param({"workers": 3, "batch_size": 3}, marks=pytest.mark.slow),
    ],
)
def test_a_loader_goes_on_where_it_was(tmp_path, options):
    folder = write_folder(tmp_path / "a", [7, 1, 5, 11])
    loader = data(folder, **options).train_dataloader()
    whole = [*keys_of(loader), *keys_of(loader), *keys_of(loader)]
    for drawn in (0, 1, 4, len(loader), len(loader) + 3):
        stopped, resumed = data(folder, **options), data(folder, **options)
        once = stopped.train_dataloader()
        again = [batch["key"] for batch in islice(chain(once, once), drawn)]
        resumed.load_state_dict(stopped.state_dict())
        rest = keys_of(resumed.train_dataloader())
        assert again + rest == whole[: drawn + len(rest)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("in_memory", [False, True])
def test_validation_has_every_sample_once(tmp_path, in_memory, workers):
    folder = write_folder(tmp_path / "a", [7, 2])
    loader = data(folder, val_urls=folder, in_memory=in_memory, workers=workers).val_dataloader()
    assert sorted(flat(keys_of(loader))) == sorted(read(folder)[0])
    assert keys_of(loader) == keys_of(loader)


def test_no_validation_set(tmp_path):
    assert data(write_folder(tmp_path / "a", [4])).val_dataloader() == []


def test_a_loader_that_was_closed_has_no_workers_and_goes_on(tmp_path):
    folder = write_folder(tmp_path / "a", [7, 1, 5, 11])
    whole = data(folder, workers=2).train_dataloader()
    loader = data(folder, workers=2).train_dataloader()
    others = len(multiprocessing.active_children())
    first = [batch["key"] for batch in islice(loader, 4)]
    assert len(multiprocessing.active_children()) == others + 2
    loader.close()
    assert len(multiprocessing.active_children()) == others
    again = [*keys_of(whole), *keys_of(whole)]
    assert first + keys_of(loader) == again[:10]


def test_one_shard_is_enough_for_several_workers(tmp_path):
    loader = data(write_folder(tmp_path / "a", [8]), workers=2).train_dataloader()
    assert len(set(flat(keys_of(loader)))) == 8


def test_more_workers_than_batches_is_said_and_does_not_hang(tmp_path):
    folder = write_folder(tmp_path / "a", [9])
    with pytest.warns(UserWarning, match=r"workers=3, but only 2 batch\(es\) an epoch"):
        loader = data(folder, workers=3).train_dataloader()
    assert len(set(flat(keys_of(loader)))) == 8


def test_what_does_not_fill_a_batch_opens_the_next_epoch(tmp_path):
    """11 samples, batches of 4: 11 batches are four epochs."""
    loader = data(write_folder(tmp_path / "a", [7, 4])).train_dataloader()
    assert len(loader) == 2
    seen = flat(batch["key"] for batch in islice(chain.from_iterable(iter(loader.__iter__, None)), 11))
    for epoch in range(4):
        assert len(set(seen[11 * epoch : 11 * (epoch + 1)])) == 11


@pytest.mark.parametrize("in_memory", [False, True])
def test_fewer_samples_than_a_batch_are_refused(tmp_path, in_memory):
    module = data(write_folder(tmp_path / "a", [2, 1]), in_memory=in_memory)
    with pytest.raises(ValueError, match="3 samples do not fill one batch of batch_size=4"):
        list(module.train_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_the_skipped_of_all_workers_are_reported_for_each_epoch(tmp_path, workers, caplog):
    """20 samples, of which 2 are bad: three passes of 5 batches of 4 are three epochs of 18 and a bit."""
    for shard in range(2):
        bad = {"bad": sample(0, png=b"x")} | {f"{at}": sample(at) for at in range(9)}
        write_tar(tmp_path / f"{shard}.tar", bad)
    with caplog.at_level(logging.WARNING):
        loader = data(str(tmp_path), workers=workers).train_dataloader()
        for _ in range(3):
            keys_of(loader)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("open_kandinsky")]
    whole = [message for message in said if "so far" not in message]
    assert [message[:8] for message in whole] == ["epoch 0 ", "epoch 1 ", "epoch 2 "]
    for message in whole:
        assert "2 of 20 samples cannot be used" in message and "0/bad" in message and "1/bad" in message
    with pytest.raises(ValueError, match="2 of 20"):
        loader = data(str(tmp_path), workers=workers, max_bad_share=0.09).train_dataloader()
        keys_of(loader), keys_of(loader)


def test_the_skipped_of_a_validation_set_are_reported_once(tmp_path, caplog):
    write_tar(tmp_path / "0.tar", {"bad": sample(0, png=b"x")} | {f"{at}": sample(at) for at in range(9)})
    with caplog.at_level(logging.WARNING):
        assert len(flat(keys_of(data(str(tmp_path), val_urls=str(tmp_path), workers=2).val_dataloader()))) == 9
    [message] = [record.getMessage() for record in caplog.records if record.name.startswith("open_kandinsky")]
    assert message.startswith("1 of 10") and "0/bad" in message


# --- distinct captions ---


def write_groups(path, rows):
    """`rows`: (caption, group) of each sample."""
    samples = {}
    for at, (caption, group) in enumerate(rows):
        info = {"caption": caption} | ({} if group is None else {"group": group})
        samples[f"{at:04d}"] = sample(at, txt=caption.encode(), json=json.dumps(info).encode())
    write_tar(path / "0.tar", samples)
    return str(path)


def check_batches(batches, group_of):
    for batch in batches:
        assert len(set(batch["caption"])) == len(batch["caption"])
        for key in batch["key"]:
            twins = {other for other in group_of if group_of[other] == group_of[key] is not None}
            assert twins <= set(batch["key"]), f"the twins of {key} are elsewhere"


def test_captions_are_distinct_and_twins_together(tmp_path):
    """10 captions with 5 copies each, 20 pairs of twins, 20 singles: 110 samples."""
    rows = [(f"common {at % 10}", None) for at in range(50)] + [(f"single {at}", None) for at in range(20)]
    rows += [(f"twin {at}", at // 2) for at in range(40)]
    module = data(write_groups(tmp_path, rows), in_memory=True, distinct_captions=True, batch_size=10)
    group_of = {f"0/{at:04d}": group for at, (_, group) in enumerate(rows)}
    loader = module.train_dataloader()
    assert len(loader) == 11, "nothing is lost"
    epochs = [list(loader), list(loader)]
    assert [batch["key"] for batch in epochs[0]] != [batch["key"] for batch in epochs[1]]
    for batches in epochs:
        check_batches(batches, group_of)
        assert [len(batch["key"]) for batch in batches] == [10] * 11
        assert len({key for batch in batches for key in batch["key"]}) == 110


def test_every_epoch_has_the_promised_number_of_batches(tmp_path):
    """A caption in nearly every batch, and triples that do not fill a batch of 8: hard to pack."""
    rows = [("common", None)] * 6 + [(f"triple {at}", at // 3) for at in range(45)]
    loader = data(write_groups(tmp_path, rows), in_memory=True, distinct_captions=True, batch_size=8).train_dataloader()
    for _ in range(20):
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(6 <= len(batch["key"]) <= 8 for batch in batches)
        check_batches(batches, {f"0/{at:04d}": group for at, (_, group) in enumerate(rows)})


def test_a_group_that_repeats_a_caption_is_split(tmp_path):
    rows = [("a", 1), ("b", 1), ("a", 1), ("c", 2)]
    loader = data(write_groups(tmp_path, rows), in_memory=True, distinct_captions=True, batch_size=2).train_dataloader()
    [together] = [batch["key"] for batch in loader if "0/0001" in batch["key"]]
    assert sorted(together) == ["0/0000", "0/0001"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("same", None)] * 9, "1 distinct captions in 9 samples"),
        ([(f"{at}", "g") for at in range(9)], "a group has 9 samples, more than batch_size=4"),
    ],
)
def test_captions_that_cannot_be_told_apart_are_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        data(write_groups(tmp_path, rows), in_memory=True, distinct_captions=True).train_dataloader()


def test_a_stream_cannot_keep_captions_distinct(tmp_path):
    with pytest.raises(ValueError, match="in_memory=true"):
        data(write_folder(tmp_path / "a", [1]), distinct_captions=True)


def test_the_mean_position_of_a_sample_moves(tmp_path):
    """A buffer that holds everything shuffles everything: each sample comes early and late."""
    loader = data(write_folder(tmp_path / "a", [8]), shuffle_buffer=8, batch_size=1).train_dataloader()
    places = np.array([np.argsort(flat(keys_of(loader))) for _ in range(60)])
    assert np.abs(places.mean(0) - 3.5).max() < 1.5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_tells_how_many_were_of_no_use(tmp_path, workers):
    for shard in range(2):
        bad = {"bad": sample(0, png=b"x")} | {f"{at}": sample(at) for at in range(9)}
        write_tar(tmp_path / f"{shard}.tar", bad)
    module = data(str(tmp_path), workers=workers, batch_size=9, max_bad_share=0.2, shuffle_buffer=1)
    loader = module.train_dataloader()
    for _ in range(3):  # epochs of 18
        assert len(list(loader)) == 2
    found = module.counts()
    assert found["read"] - found["skipped"] == 54 and found["skipped"] in (5, 6) and found["filtered_out"] == 0
