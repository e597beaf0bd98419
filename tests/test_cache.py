"""The cache: what is written comes back bit for bit, or is refused by name."""

import numpy as np
import pytest
import torch
from makers.cache import NULL, columns, data, folder

from open_kandinsky.data.cache_files import begin, finish, read_manifest, read_shard, write_shard
from open_kandinsky.data.moments import Moments


def keys_of(loader):
    return [batch["key"] for batch in loader]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip_is_bit_exact(tmp_path, dtype):
    wide = torch.randn(3, 8).to(dtype)
    wide[0, 0] = float("nan")
    halves = {"a": wide[:, :4], "b": wide[:, 4:], "mask": torch.tensor([True, False, True])}
    write_shard(tmp_path / "x.safetensors", halves, ["k1", "k2", "k3"], ["a \n line", "ünïcode 🙂", ""])
    found, keys, captions = read_shard(tmp_path / "x.safetensors")
    assert (keys, captions) == (["k1", "k2", "k3"], ["a \n line", "ünïcode 🙂", ""])
    for name, column in halves.items():
        assert found[name].dtype == column.dtype
        assert (
            found[name].numpy(force=True).tobytes() == column.contiguous().numpy(force=True).tobytes()
            if (dtype != torch.bfloat16)
            else torch.equal(found[name].nan_to_num(), column.nan_to_num())
        )


def test_nothing_is_overwritten(tmp_path):
    write_shard(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, ["k"], ["c"])
    with pytest.raises(ValueError, match="x.safetensors' exists"):
        write_shard(tmp_path / "x.safetensors", {"a": torch.ones(1)}, ["k"], ["c"])
    assert read_shard(tmp_path / "x.safetensors")[0]["a"].item() == 0


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def half_written(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("open_kandinsky.data.cache_files.save_file", half_written)
    with pytest.raises(OSError, match="disk full"):
        write_shard(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, ["k"], ["c"])
    assert list(tmp_path.iterdir()) == []


def test_unequal_lengths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'a': 2.*'captions': 1"):
        write_shard(tmp_path / "x.safetensors", {"a": torch.zeros(2)}, ["k", "l"], ["c"])


def test_manifest_says_what_is_there(tmp_path):
    manifest = read_manifest(folder(tmp_path / "c"))
    assert manifest["count"] == 12
    assert manifest["fields"]["text_tokens"] == {"shape": [4, 3], "dtype": "F16"}
    assert (manifest["encoders"], manifest["source"]) == ({"clip": "abc"}, "here")


def test_shards_that_disagree_are_refused(tmp_path):
    path = folder(tmp_path / "c")
    write_shard(path / "99999.safetensors", {"image_emb": torch.zeros(1, 7)}, ["k"], ["c"])
    with pytest.raises(ValueError, match="99999.safetensors holds"):
        finish(path, {}, NULL)


def test_statistics_are_numpys(tmp_path):
    path = folder(tmp_path / "c")
    every = torch.cat([columns(n, seed=at)["image_emb"] for at, n in enumerate((5, 3, 4))]).double().numpy()
    mean, std = data(path).statistics("image_emb")
    assert mean.dtype == std.dtype == torch.float32
    np.testing.assert_array_equal(mean.numpy(), every.mean(0).astype(np.float32))
    np.testing.assert_allclose(std.numpy(), every.std(0), rtol=1e-7)


def test_statistics_of_a_latent_are_its_channels(tmp_path):
    (tmp_path / "c").mkdir()
    z = torch.randn(5, 4, 3, 2)
    write_shard(tmp_path / "c" / "0.safetensors", {"z": z}, list("abcde"), list("abcde"))
    finish(tmp_path / "c", {}, NULL)
    mean, std = data(tmp_path / "c", fields=["z"]).statistics("z")
    torch.testing.assert_close(mean, z.mean((0, 2, 3)))
    torch.testing.assert_close(std, z.std((0, 2, 3), correction=0))
    with pytest.raises(ValueError, match="no statistics of image_emb"):
        data(tmp_path / "c").statistics("image_emb")


def test_null_conditions_are_those_of_the_fields(tmp_path):
    null = data(folder(tmp_path / "c")).null
    assert null.keys() == {"image_emb", "text_tokens"}
    assert torch.equal(null["image_emb"], NULL["image_emb"])


def test_other_encoders_are_refused(tmp_path):
    begin(tmp_path / "c", {"encoders": {"clip": "abc"}})
    begin(tmp_path / "c", {"encoders": {"clip": "abc"}})
    with pytest.raises(ValueError, match="was begun with .*abc.* not .*def"):
        begin(tmp_path / "c", {"encoders": {"clip": "def"}})


def test_moments_survive_a_large_offset_and_any_split():
    """Sums of squares would lose every digit at this offset."""
    values = 1e8 + np.random.default_rng(0).normal(size=(1000, 3))
    parts = [Moments(dim=3) for _ in range(3)]
    for at, rows in enumerate(np.array_split(values, 17)):
        parts[at % 3].update(torch.from_numpy(rows))
    total = Moments(dim=3)
    for part in [*parts, Moments(dim=3)]:
        total.merge(part)
    total.update(torch.empty(0, 3))
    np.testing.assert_allclose(total.mean.numpy(), values.mean(0), rtol=1e-14)
    np.testing.assert_allclose(total.std.numpy(), values.std(0), rtol=1e-8)


def test_batches_are_the_shards(tmp_path):
    path = folder(tmp_path / "c")
    stored = {
        key: row
        for at in range(3)
        for key, row in zip(
            read_shard(path / f"{at:05d}.safetensors")[1],
            read_shard(path / f"{at:05d}.safetensors")[0]["text_tokens"],
            strict=True,
        )
    }
    module = data(path)
    assert module.table.columns["text_tokens"].dtype == torch.float16, "half stays half in memory"
    for batch in module.train_dataloader():
        assert set(batch) == {"image_emb", "text_tokens", "caption", "key"}
        assert batch["text_tokens"].dtype == torch.float32
        assert batch["caption"] == [f"caption of {key}" for key in batch["key"]]
        assert torch.equal(batch["text_tokens"], torch.stack([stored[key].float() for key in batch["key"]]))


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
