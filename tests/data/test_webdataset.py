"""A webdataset pipeline as the data of a stage: each sample once, nothing unpickled, no command without leave."""

import pickle
from functools import partial
from itertools import islice

import pytest
import torch
import webdataset as wds
from fixtures.group import together
from fixtures.shards import data as shard_data
from fixtures.shards import picture, sample, write_folder, write_tar
from fixtures.system import config
from fixtures.webdatasets import data, keys, keys_of_an_epoch, refusal

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.pairs import AspectBuckets
from open_kandinsky.train import train


def every_key(counts):
    return [f"{shard:05d}/{shard:05d}{row:04d}" for shard, n in enumerate(counts) for row in range(n)]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_sample_once_an_epoch_in_another_order_each_time(tmp_path, workers):
    folder = write_folder(tmp_path / "a", [9, 4, 11])
    loader = data(folder, workers=workers).train_dataloader()
    first, second = keys(loader), keys(loader)
    assert sorted(first) == sorted(second) == every_key([9, 4, 11])
    assert first != second and first != sorted(first)
    again = data(folder, workers=workers).train_dataloader()
    assert keys(again) == first, "the seed decides"


def test_validation_is_in_the_order_of_the_shards(tmp_path):
    folder = write_folder(tmp_path / "a", [5, 3])
    loader = data(folder, val_urls=folder).val_dataloader()
    assert keys(loader) == keys(loader) == every_key([5, 3])


def test_batches_are_those_of_shards(tmp_path):
    """Sample by sample the same tensors and captions as data=shards makes of the same tars."""
    folder = write_folder(tmp_path / "a", [9, 4])
    made = [{}, {}]
    for rows, module in zip(made, (data(folder), shard_data(folder)), strict=True):
        for batch in module.train_dataloader():
            assert set(batch) == {"pixels", "caption", "key"}
            rows |= {key: (batch["pixels"][at], batch["caption"][at]) for at, key in enumerate(batch["key"])}
    ours, theirs = made
    assert len(ours) == 13 and len(theirs) == 12, "data=shards leaves what fills no batch to the next epoch"
    for key, (pixels, caption) in theirs.items():
        assert torch.equal(ours[key][0], pixels) and ours[key][1] == caption


def test_a_batch_has_one_shape(tmp_path):
    sizes = {f"{at}": (40, 10) if at % 2 else (10, 40) for at in range(12)}
    write_tar(tmp_path / "0.tar", {key: sample(int(key), png=picture(1, size)) for key, size in sizes.items()})
    buckets = AspectBuckets(size=16, step=8, max_aspect=4.0, field="pixels")
    batches = list(data(str(tmp_path), buckets=buckets, fields={}).train_dataloader())
    shapes = sorted(tuple(batch["pixels"].shape) for batch in batches)
    assert shapes == [(2, 3, 8, 32), (2, 3, 32, 8), (4, 3, 8, 32), (4, 3, 32, 8)]
    assert sorted(key for batch in batches for key in batch["key"]) == sorted(f"0/{key}" for key in sizes)


def test_an_epoch_of_a_number_of_batches_goes_on_from_pass_to_pass(tmp_path):
    loader = data(write_folder(tmp_path / "a", [6, 4]), epoch_batches=7).train_dataloader()
    assert len(loader) == 7
    batches = list(loader)
    assert [len(batch["key"]) for batch in batches] == [4] * 7
    assert len(set(keys(batches)[:10])) == 10, "each sample once before one comes again"


class Hostile:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", ["pyd", "pickle", "pth"])
def test_a_pickle_in_a_tar_is_not_run(tmp_path, kind):
    bomb = pickle.dumps(Hostile(str(tmp_path / "bomb")))
    url = write_tar(tmp_path / "0.tar", {f"{at}": sample(at, **{kind: bomb}) for at in range(8)})
    assert len(keys(data(url).train_dataloader())) == 8
    plain = lambda urls, seed: wds.WebDataset(urls, shardshuffle=False)  # noqa: E731  # one that reads every member
    assert len(keys(data(url, pipeline=plain).train_dataloader())) == 8
    assert not (tmp_path / "bomb").exists()
    if kind != "pth":  # torch.load refuses it by itself
        list(wds.WebDataset([url], shardshuffle=False).decode())
        assert (tmp_path / "bomb").exists(), "webdataset's own decoding would have run it"


def test_a_pipeline_that_decodes_is_refused(tmp_path):
    folder = write_folder(tmp_path / "a", [4])
    decoding = lambda urls, seed: wds.WebDataset(urls, shardshuffle=False).decode("pil")  # noqa: E731
    with pytest.raises(UserError, match=r"data\.pipeline.*without \.decode"):
        keys(data(folder, pipeline=decoding).train_dataloader())


@pytest.mark.parametrize("key", ["urls", "val_urls"])
def test_a_command_is_refused_unless_it_is_allowed(tmp_path, key):
    folder = write_folder(tmp_path / "a", [3, 2])
    command = f"pipe:cat {folder}/0000{{0..1}}.tar"
    with pytest.raises(UserError, match="allow_pipe=true"):
        data(**{"urls": folder, key: command})
    allowed = data(command, allow_pipe=True)
    assert len(allowed.shards) == 2 and sorted(keys(allowed.train_dataloader())) == every_key([3, 2])


def test_too_many_bad_samples_stop_the_training(tmp_path):
    broken = {f"{at}": sample(at, **({"png": b"x"} if at % 3 == 0 else {})) for at in range(90)}
    write_tar(tmp_path / "0.tar", broken)
    with pytest.raises(UserError, match=r"(?s)unreadable image.*max_bad_share=0\.1"):
        keys(data(str(tmp_path)).train_dataloader())
    assert len(keys(data(str(tmp_path), max_bad_share=0.5).train_dataloader())) == 60


def test_where_nothing_can_be_used_nothing_hangs(tmp_path):
    write_tar(tmp_path / "0.tar", {"0": sample(0, png=b"x")})
    with pytest.raises(UserError, match="no sample can be used"):
        next(iter(data(str(tmp_path), epoch_batches=3, max_bad_share=1.0).train_dataloader()))


def test_a_resumed_run_begins_the_next_pass(tmp_path):
    folder = write_folder(tmp_path / "a", [9, 7])
    whole = data(folder)
    loader = whole.train_dataloader()
    passes = [keys(loader) for _ in range(3)]
    stopped = data(folder)
    list(islice(stopped.train_dataloader(), 2))
    resumed = data(folder)
    resumed.load_state_dict(stopped.state_dict())
    assert keys(resumed.train_dataloader()) == passes[1]
    with pytest.raises(UserError, match="other data than data=webdataset"):
        data(folder).load_state_dict(shard_data(folder).state_dict() | {"progress": []})


@pytest.mark.slow
def test_processes_have_shards_of_their_own_and_equally_many_batches(tmp_path):
    folder = write_folder(tmp_path / "a", [4, 4, 4, 4])
    task = partial(keys_of_an_epoch, folder=folder, workers=2, batch_size=2, epoch_batches=4)
    first, second = together(task, 2)
    assert len(first) == len(second) == 8 and not set(first) & set(second)


@pytest.mark.slow
def test_what_several_processes_cannot_share_is_refused(tmp_path):
    folder = write_folder(tmp_path / "a", [4, 4])
    for told in together(partial(refusal, folder=folder), 2):
        assert "data.epoch_batches=null with 2 processes" in told and "data.epoch_batches=1000" in told
    for told in together(partial(refusal, folder=f"{folder}/00000.tar", epoch_batches=3), 2):
        assert "1 shard(s) for 2 processes" in told and "data=shards" in told


@pytest.mark.parametrize("part", ["movq", "clip"])
def test_a_stage_trains_with_it(part, shapes, tmp_path):
    more = ["data=webdataset", "~data.in_memory", *(["~data.distinct_captions"] if part == "clip" else [])]
    folder = train(config(part, shapes, *more, f"run_dir='{tmp_path}/run'", "data.workers=2", "trainer.max_steps=3"))
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 3 and state["WebDatasetData"] == {"passes": 1}
    assert (folder / "weights.safetensors").exists()
