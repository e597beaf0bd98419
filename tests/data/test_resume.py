"""A run that was killed and resumed sees the batches that an uninterrupted one sees."""

import warnings

import pytest
import torch
from fixtures.cache import data as cached_data
from fixtures.cache import folder
from fixtures.shards import data as shard_data
from fixtures.shards import write_folder
from lightning import Callback, LightningModule, Trainer


class Recorder(LightningModule):
    """Trains one weight, and notes which batches it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append(batch["key"])
        return self.weight.square().sum()

    def validation_step(self, batch, _):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAndDie(Callback):
    """What a machine that stops leaves behind: a checkpoint from the middle of a run."""

    def __init__(self, step, path, hook):
        self.step, self.path = step, path
        setattr(self, hook, self.save)

    def save(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise InterruptedError


def fit(module, tmp_path, callbacks=(), checkpoint=None, **options):
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    settings = dict(max_epochs=3, accelerator="cpu", default_root_dir=tmp_path, callbacks=list(callbacks))
    trainer, stage = Trainer(**quiet | settings | options), Recorder()
    try:
        trainer.fit(stage, datamodule=module, ckpt_path=checkpoint, weights_only=True)
    except InterruptedError:
        pass
    return trainer, stage.seen


def folder_once(path):
    return path / "c" if (path / "c").exists() else folder(path / "c")


def shards(path, **options):
    urls = str(path / "a") if (path / "a").exists() else write_folder(path / "a", [3, 4, 5])
    return shard_data(urls, val_urls=urls, **options)


SOURCES = {
    "cache": lambda path: cached_data(folder_once(path), val_path=str(path / "c")),
    "cache, streamed": lambda path: cached_data(folder_once(path), val_path=str(path / "c"), in_memory=False),
    "memory": lambda path: shards(path, in_memory=True),
    "distinct": lambda path: shards(path, in_memory=True, distinct_captions=True),
    "stream": lambda path: shards(path),
    "stream of 2 workers": lambda path: shards(path, workers=2),
}


@pytest.mark.parametrize("source", ["cache", "cache, streamed", "memory", "distinct", "stream"])
@pytest.mark.parametrize(
    ("step", "hook"),
    [(1, "on_train_batch_end"), (5, "on_train_batch_end"), (6, "on_train_batch_end")]
    + [(3, "on_train_epoch_end"), (6, "on_validation_end")],
)
def test_killed_and_resumed_is_uninterrupted(tmp_path, source, step, hook):
    module = SOURCES[source]
    whole = fit(module(tmp_path), tmp_path)[1]
    assert len(whole) == 9 and whole[:3] != whole[3:6] != whole[6:]
    path = tmp_path / "last.ckpt"
    before = fit(module(tmp_path), tmp_path, [SaveAndDie(step, path, hook)])[1]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*dataloader is not resumable.*")
        after = fit(module(tmp_path), tmp_path, checkpoint=path)[1]
    assert before == whole[:step]
    assert after == whole[step:]


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_finished_run_can_be_prolonged(tmp_path, stop):
    whole = fit(SOURCES["memory"](tmp_path), tmp_path)[1]
    trainer, before = fit(SOURCES["memory"](tmp_path), tmp_path, max_steps=stop)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    after = fit(SOURCES["memory"](tmp_path), tmp_path, checkpoint=tmp_path / "last.ckpt", max_epochs=-1, max_steps=9)[1]
    assert before + after == whole


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3, 4, 6, 7, 8])
def test_a_stream_of_workers_is_resumed_anywhere(tmp_path, step):
    test_killed_and_resumed_is_uninterrupted(tmp_path, "stream of 2 workers", step, "on_train_batch_end")


def test_a_stream_of_workers_is_resumed_too(tmp_path):
    test_killed_and_resumed_is_uninterrupted(tmp_path, "stream of 2 workers", 5, "on_train_batch_end")


@pytest.mark.filterwarnings("ignore:the order of samples has changed")
def test_a_stream_is_killed_twice_in_one_epoch_and_resumed_by_other_workers(tmp_path):
    """12 samples an epoch, one a batch: what the three runs saw together are three epochs, none of them twice."""
    seen, checkpoint = [], None
    for step, workers in [(3, 2), (7, 0), (99, 3)]:
        path = tmp_path / f"{step}.ckpt"
        module = shards(tmp_path, workers=workers, batch_size=1)
        seen += fit(module, tmp_path, [SaveAndDie(step, path, "on_train_batch_end")], checkpoint)[1]
        checkpoint = path
    keys = [key for [key] in seen]
    assert len(keys) == 36
    for epoch in range(3):
        assert len(set(keys[12 * epoch : 12 * epoch + 12])) == 12


def test_a_run_in_memory_does_not_go_on_as_a_stream(tmp_path):
    path = tmp_path / "last.ckpt"
    fit(SOURCES["memory"](tmp_path), tmp_path, [SaveAndDie(1, path, "on_train_batch_end")])
    with pytest.raises(ValueError, match="in memory"):
        fit(SOURCES["stream"](tmp_path), tmp_path, checkpoint=path)
