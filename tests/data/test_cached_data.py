"""The cache: what is written comes back bit for bit, or is refused by name."""

import json
import random
from itertools import islice

import numpy as np
import pytest
import torch
from fixtures.cache import NULL, RECIPE, closed, data, encoded, folder, rows
from safetensors.torch import save_file

from open_kandinsky.data.cache.folder import CacheShards, PrepareCached, begin, finish, read_manifest, shard_files
from open_kandinsky.data.cache.rows import CacheRows, before, kept, of_all, of_words, rows_of
from open_kandinsky.data.cache.shard import RunningMoments, fields_of, read_about, read_shard, write_shard


def keys_of(loader):
    return [batch["key"] for batch in loader]


def test_round_trip_is_bit_exact(tmp_path):
    written = rows(7)
    written.columns["image_emb"][0, 0] = float("nan")
    awkward = ["a \n line", "ünïcode 🙂", "", *written.caption[3:]]
    write_shard(tmp_path / "x.safetensors", written._replace(caption=awkward), {"made": "here"})
    found = read_shard(tmp_path / "x.safetensors")
    assert (found.key, found.caption) == (written.key, awkward)
    assert found.columns.keys() == written.columns.keys()
    for name, column in written.columns.items():
        assert found.columns[name].dtype == column.dtype
        assert found.columns[name].numpy().tobytes() == column.contiguous().numpy().tobytes()
    about = read_about(tmp_path / "x.safetensors")
    assert (about["images"], about["captions"], about["made"]) == (7, 7, "here")


def test_the_same_rows_are_the_same_bytes(tmp_path):
    for name in "ab":
        write_shard(tmp_path / f"{name}.safetensors", rows(5), {"z": 1, "a": {"c": 2, "b": 3}, "m": []})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_nothing_is_overwritten(tmp_path):
    write_shard(tmp_path / "x.safetensors", rows(1, seed=0), {})
    before = (tmp_path / "x.safetensors").read_bytes()
    with pytest.raises(ValueError, match="x.safetensors' exists"):
        write_shard(tmp_path / "x.safetensors", rows(1, seed=1), {})
    assert (tmp_path / "x.safetensors").read_bytes() == before


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def half_written(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", half_written)
    with pytest.raises(OSError, match="disk full"):
        write_shard(tmp_path / "x.safetensors", rows(1), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["image_emb", "text_emb", "text_tokens", "text_words", "caption_from"])
def test_unequal_lengths_are_refused(tmp_path, name):
    written = rows(3)
    written.columns[name] = written.columns[name][:-1]
    with pytest.raises(ValueError, match="columns of unequal length .*3 keys, 3 captions"):
        write_shard(tmp_path / "x.safetensors", written, {})


def test_manifest_says_what_is_there(tmp_path):
    manifest = read_manifest(folder(tmp_path / "c"))
    assert manifest["count"] == 12
    assert manifest["fields"]["text_tokens"] == {"shape": [4, 3], "dtype": "float16"}
    assert (manifest["encoders"], manifest["source"]) == ({"clip": "abc"}, "here")


def test_shards_that_disagree_are_refused(tmp_path):
    path, other = folder(tmp_path / "c"), rows(1)
    other.columns["image_emb"] = torch.zeros(1, 7)
    write_shard(path / "99999.safetensors", other, {})
    with pytest.raises(ValueError, match="99999.safetensors holds"):
        finish(path, RECIPE, shard_files(path))


def test_statistics_are_numpys(tmp_path):
    path = folder(tmp_path / "c")
    every = torch.cat([encoded(n, seed=at)[0]["image_emb"] for at, n in enumerate((5, 3, 4))]).double().numpy()
    mean, std = data(path).statistics("image_emb")
    assert mean.dtype == std.dtype == torch.float32
    np.testing.assert_array_equal(mean.numpy(), every.mean(0).astype(np.float32))
    np.testing.assert_allclose(std.numpy(), every.std(0), rtol=1e-7)


def test_statistics_of_a_latent_are_its_channels(tmp_path):
    (tmp_path / "c").mkdir()
    z, path = torch.randn(5, 4, 3, 2), tmp_path / "c" / "0.safetensors"
    write_shard(path, CacheRows({"z": z.half(), "caption_from": torch.arange(6)}, list("abcde"), list("abcde")), {})
    closed(tmp_path / "c")
    mean, std = data(tmp_path / "c", fields=["z"]).statistics("z")
    stored = z.half().double()
    torch.testing.assert_close(mean, stored.mean((0, 2, 3)).float())
    torch.testing.assert_close(std, stored.std((0, 2, 3), correction=0).float())
    with pytest.raises(ValueError, match="no statistics of image_emb"):
        data(tmp_path / "c").statistics("image_emb")


def test_null_conditions_are_those_of_the_fields(tmp_path):
    null = data(folder(tmp_path / "c")).null
    assert null.keys() == {"image_emb", "text_tokens"}
    assert torch.equal(null["image_emb"], NULL["image_emb"])


def test_other_encoders_are_refused(tmp_path):
    begin(tmp_path / "c", {"encoders": {"clip": "abc", "movq": "g"}})
    begin(tmp_path / "c", {"encoders": {"clip": "abc", "movq": "g"}})
    with pytest.raises(ValueError, match="was begun with encoders.clip=abc, not def: delete it"):
        begin(tmp_path / "c", {"encoders": {"clip": "def", "movq": "g"}})


OLD = {"encoders": {"clip": "abc"}, "fields": {}, "count": 1, "shards": {"0.safetensors": 1}}


def test_what_an_older_version_made_is_refused_not_misread(tmp_path):
    (tmp_path / "begun.json").write_text(json.dumps({"encoders": {"clip": "abc"}, "image_size": 32}))
    with pytest.raises(ValueError, match="has format 1 and this version reads 2: precompute into another folder"):
        begin(tmp_path, {"encoders": {"clip": "abc"}})
    (tmp_path / "manifest.json").write_text(json.dumps(OLD))
    with pytest.raises(ValueError, match="has format 1 and this version reads 2"):
        data(tmp_path).train_dataloader()
    save_file({"z": torch.zeros(1)}, tmp_path / "0.safetensors", metadata={"keys": "[]", "captions": "[]"})
    with pytest.raises(ValueError, match="an older version made it"):
        read_shard(tmp_path / "0.safetensors")
    save_file({"z": torch.zeros(1)}, tmp_path / "1.safetensors")
    with pytest.raises(ValueError, match="it is no shard of a cache"):
        read_shard(tmp_path / "1.safetensors")


def test_moments_survive_a_large_offset_and_any_split():
    """Sums of squares would lose every digit at this offset."""
    values = 1e8 + np.random.default_rng(0).normal(size=(1000, 3))
    parts = [RunningMoments(dim=3) for _ in range(3)]
    for at, some in enumerate(np.array_split(values, 17)):
        parts[at % 3].update(torch.from_numpy(some))
    total = RunningMoments(dim=3)
    for part in [*parts, RunningMoments(dim=3)]:
        total.merge(part)
    total.update(torch.empty(0, 3))
    np.testing.assert_allclose(total.mean.numpy(), values.mean(0), rtol=1e-14)
    np.testing.assert_allclose(total.std.numpy(), values.std(0), rtol=1e-8)


def test_batches_are_what_the_encoders_said(tmp_path):
    module = data(folder(tmp_path / "c"), fields=["image_emb", "text_emb", "text_tokens", "text_mask"])
    said = {f"{at:05d}/{i}": (at, i, n) for at, n in enumerate((5, 3, 4)) for i in range(n)}
    assert module.table.rows.columns["text_tokens"].dtype == torch.float16, "half stays half in memory"
    for batch in module.train_dataloader():
        assert set(batch) == {"image_emb", "text_emb", "text_tokens", "text_mask", "caption", "key"}
        assert batch["caption"] == [f"caption of {key}" for key in batch["key"]]
        for row, key in enumerate(batch["key"]):
            at, i, n = said[key]
            images, texts = encoded(n, seed=at)
            for name in ("text_emb", "text_mask"):
                assert torch.equal(batch[name][row], texts[name][i])
            assert torch.equal(batch["image_emb"][row], images["image_emb"][i])
            assert batch["text_tokens"].dtype == torch.float32
            assert torch.equal(batch["text_tokens"][row], texts["text_tokens"][i].half().float())


def test_every_example_once_and_another_order_each_epoch(tmp_path):
    path = folder(tmp_path / "c")
    loader, again = data(path).train_dataloader(), data(path).train_dataloader()
    first, second = keys_of(loader), keys_of(loader)
    assert len(set(sum(first, []))) == 12
    assert first != second
    assert [first, second] == [keys_of(again), keys_of(again)]
    assert first != keys_of(data(path, seed=1).train_dataloader())


def test_validation_is_in_order_with_its_short_batch(tmp_path):
    path = folder(tmp_path / "c")
    batches = keys_of(data(path, val_path=str(path), batch_size=5).val_dataloader())
    assert [len(batch) for batch in batches] == [5, 5, 2]
    assert batches[1] == ["00001/0", "00001/1", "00001/2", "00002/0", "00002/1"]


def test_limit_takes_the_first(tmp_path):
    module = data(folder(tmp_path / "c"), limit=7, batch_size=7)
    assert sorted(keys_of(module.train_dataloader())[0])[-1] == "00001/1"


def test_too_few_examples_are_refused(tmp_path):
    with pytest.raises(ValueError, match="12 samples do not fill one batch of batch_size=13"):
        data(folder(tmp_path / "c"), batch_size=13).train_dataloader()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.rename(path.with_name("gone")), "no folder"),
        (lambda path: (path / "manifest.json").unlink(), "3 shard.*unfinished"),
        (lambda path: (path / "manifest.json").write_text('{"fields": '), "damaged"),
        (lambda path: (path / "00001.safetensors").unlink(), "00001.safetensors' is no whole shard"),
        (lambda path: (path / "00001.safetensors").write_bytes(b""), "00001.safetensors' is no whole shard"),
        (
            lambda path: (path / "00001.safetensors").write_bytes((path / "00001.safetensors").read_bytes()[:-5]),
            "00001.safetensors' is no whole shard",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, spoil, message):
    path = folder(tmp_path / "c")
    spoil(path)
    with pytest.raises(ValueError, match=message):
        data(path).train_dataloader()


def test_a_field_that_was_not_precomputed_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no z: it holds image_emb"):
        data(folder(tmp_path / "c"), fields=["image_emb", "z"]).train_dataloader()


TEXT = ["text_emb", "text_tokens", "text_mask"]


def uniform(states, mask):
    """As XLM-R's: one state of padding a caption, at every position of it."""
    last = states[torch.arange(len(states)), -1]
    return torch.where(mask[..., None], states, last[:, None])


def cache_of(path, images, texts, captions, text_states):
    keys = [f"k{row}" for row in range(len(captions))]
    path.mkdir()
    write_shard(path / "0.safetensors", rows_of(images, texts, captions, keys, kept(text_states)), {})
    return closed(path, text_states=text_states)


@pytest.mark.parametrize("text_states", ["words", "all"])
@pytest.mark.parametrize("padding", [uniform, lambda states, mask: states])
def test_text_states_come_back_padded(tmp_path, text_states, padding):
    images, texts = encoded(40)
    texts["text_tokens"] = padding(texts["text_tokens"], texts["text_mask"])
    path = cache_of(tmp_path / "c", images, texts, [["a"]] * 40, text_states)
    batch = data(path, fields=TEXT, padding=False, batch_size=40).table.batch(list(range(40)), epoch=0)
    half, mask = texts["text_tokens"].half().float(), texts["text_mask"]
    assert torch.equal(batch["text_mask"], mask)
    assert torch.equal(batch["text_tokens"][mask], half[mask])
    if text_states == "all":
        assert torch.equal(batch["text_tokens"], half)


def test_no_more_states_are_stored_than_say_something():
    states, mask = torch.randn(3, 77, 8), before(torch.tensor([5, 76, 77]), 77)
    assert of_words(states, mask).tolist() == [5, 76, 77]
    assert of_all(states, mask).tolist() == [77, 77, 77]
    assert of_all(uniform(states, mask), mask).tolist() == [6, 77, 77]
    noise = 1 + 1e-7 * torch.randn(3, 77, 8)
    assert of_all(uniform(states, mask) * noise, mask).tolist() == [6, 77, 77]


def test_words_alone_are_refused_to_a_stage_that_reads_padding(tmp_path):
    path = folder(tmp_path / "c", text_states="words")
    with pytest.raises(ValueError, match="states of words alone.*data.padding=true.*text_states=all"):
        data(path).train_dataloader()
    data(path, padding=False).train_dataloader()
    data(path, fields=["image_emb", "text_emb", "text_mask"]).train_dataloader()


def several(path):
    """Images with one to five captions."""
    counts = [1 + row % 5 for row in range(60)]
    captions = [[f"{row}/{at}" for at in range(count)] for row, count in enumerate(counts)]
    images, texts = encoded(60)[0], encoded(sum(counts))[1]
    return cache_of(path, images, texts, captions, "all"), texts, [c for those in captions for c in those]


def test_one_of_several_captions_is_drawn_with_its_own_states(tmp_path):
    path, texts, captions = several(tmp_path / "c")
    for batch in data(path, fields=["image_emb", *TEXT]).train_dataloader():
        for row, (key, caption) in enumerate(zip(batch["key"], batch["caption"], strict=True)):
            at = captions.index(caption)
            assert caption.startswith(f"{key[1:]}/")
            assert torch.equal(batch["text_emb"][row], texts["text_emb"][at])
            assert torch.equal(batch["text_tokens"][row], texts["text_tokens"][at].half().float())
            assert torch.equal(batch["text_mask"][row], texts["text_mask"][at])
            assert torch.equal(batch["image_emb"][row], encoded(60)[0]["image_emb"][int(key[1:])])


def test_captions_are_drawn_evenly_and_by_seed_epoch_and_key_alone(tmp_path):
    """Of 12 images with five captions in 500 epochs each is drawn 1,200 times; 4 standard errors are 124."""
    path, _, _ = several(tmp_path / "c")
    table = data(path, fields=["text_emb"]).table
    fives = [row for row in range(60) if row % 5 == 4]
    drawn = [table.batch(fives, epoch)["caption"] for epoch in range(500)]
    counts = np.bincount([int(caption[-1]) for those in drawn for caption in those])
    assert len(counts) == 5 and abs(counts - 1200).max() < 124
    again = data(path, fields=["text_emb"]).table
    assert again.batch(fives[::-1], 7)["caption"] == drawn[7][::-1]
    assert data(path, fields=["text_emb"], seed=1).table.batch(fives, 7)["caption"] != drawn[7]


def test_validation_has_the_first_caption_each_time(tmp_path):
    path, _, _ = several(tmp_path / "c")
    loader = data(path, val_path=str(path), fields=["text_emb"]).val_dataloader()
    for _ in range(2):
        assert [c for batch in loader for c in batch["caption"]] == [f"{row}/0" for row in range(60)]


def test_a_limit_cuts_ragged_columns_where_the_images_end(tmp_path):
    path, texts, captions = several(tmp_path / "c")
    cut = data(path, fields=TEXT, limit=7).table
    whole = data(path, fields=TEXT).table
    assert len(cut.rows.caption) == 1 + 2 + 3 + 4 + 5 + 1 + 2 and len(cut.key) == 7
    for name, column in cut.batch(list(range(7)), epoch=3).items():
        other = whole.batch(list(range(7)), epoch=3)[name]
        assert torch.equal(column, other) if isinstance(column, torch.Tensor) else column == other


def streamed(path, names):
    manifest = read_manifest(path)
    fields = fields_of(path, manifest, names, padding=True)
    return CacheShards(folder=path, manifest=manifest, fields=fields), PrepareCached(fields)


def test_a_stream_gives_the_rows_of_the_table(tmp_path):
    path = folder(tmp_path / "c")
    shards, prepare = streamed(path, ["image_emb", *TEXT])
    assert list(shards.counts) == [5, 3, 4]
    table, row = data(path, fields=["image_emb", *TEXT]).table, 0
    for shard, count in enumerate(shards.counts):
        read = list(shards.read(shard, range(count), None))
        assert [at for at, _ in read] == list(range(count))
        for _, example in read:
            made, expected = prepare.row(example, prepare.bucket(example), random.Random(0)), table.batch([row], 0)
            assert made.keys() == expected.keys() and made["key"] == expected["key"][0]
            assert made["caption"] == expected["caption"][0]
            for name in ("image_emb", *TEXT):
                assert made[name].dtype == expected[name].dtype and torch.equal(made[name], expected[name][0])
            row += 1
    assert [at for at, _ in shards.read(0, [1, 4], None)] == [1, 4]


def test_a_stream_draws_captions_and_buckets_by_latent(tmp_path):
    path, _, _ = several(tmp_path / "c")
    shards, prepare = streamed(path, ["text_emb"])
    examples = dict(shards.read(0, range(60), None))
    drawn = {prepare.row(examples[4], None, random.Random(at))["caption"] for at in range(100)}
    assert drawn == {f"4/{at}" for at in range(5)} and prepare.bucket(examples[0]) is None
    (tmp_path / "z").mkdir()
    z = CacheRows({"z": torch.randn(2, 4, 3, 2).half(), "caption_from": torch.arange(3)}, ["a", "b"], ["a", "b"])
    write_shard(tmp_path / "z" / "0.safetensors", z, {})
    closed(tmp_path / "z")
    shards, prepare = streamed(tmp_path / "z", ["z"])
    ((_, example),) = shards.read(0, [1], None)
    assert prepare.bucket(example) == (4, 3, 2)
    assert torch.equal(prepare.row(example, (4, 3, 2), random.Random(0))["z"], z.columns["z"][1].float())


def test_a_stream_names_a_shard_that_is_gone_or_another(tmp_path):
    path = folder(tmp_path / "c")
    shards, _ = streamed(path, ["image_emb"])
    (path / "00001.safetensors").unlink()
    with pytest.raises(ValueError, match="00001.safetensors' is no whole shard"):
        list(shards.read(1, [0], None))
    write_shard(path / "00001.safetensors", rows(2), {})
    with pytest.raises(ValueError, match="00001.safetensors' has 2 examples, the manifest says 3"):
        list(shards.read(1, [0], None))


def test_a_stream_has_every_example_once_and_other_data_are_refused(tmp_path):
    path = folder(tmp_path / "c")
    first, other = (data(path, in_memory=False, batch_size=4, seed=seed) for seed in (0, 1))
    batches = list(islice(first.train_dataloader(), 6))
    assert sorted(sum((batch["key"] for batch in batches[:3]), [])) == sorted(data(path).table.key)
    assert [batch["key"] for batch in batches[:3]] != [batch["key"] for batch in batches[3:]]
    for batch in batches:
        assert batch["caption"] == [f"caption of {key}" for key in batch["key"]]
        assert batch["text_tokens"].dtype == torch.float32
    other.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="the data's order is not the checkpoint's: seed=1, the checkpoint has 0"):
        other.train_dataloader()


def test_a_stream_takes_no_limit(tmp_path):
    with pytest.raises(ValueError, match="data.limit=7 needs data.in_memory=true"):
        data(folder(tmp_path / "c"), in_memory=False, limit=7)
