"""Shards of images to shards of latents and embeddings."""

import pytest
import torch
from makers.shards import sample, write_tar
from makers.system import untrained
from safetensors.torch import load_file

from open_kandinsky import configuration
from open_kandinsky.data.cache_files import read_manifest, read_shard
from open_kandinsky.data.reading import Skipped, read_samples
from open_kandinsky.data.transforms import ClipPixels, Pixels
from open_kandinsky.failures import message
from open_kandinsky.load import trained
from open_kandinsky.precompute import Encoders, precompute


def config(urls, out, system, *more):
    paths = {"urls": urls, "out": out, "clip": system / "clip", "movq": system / "movq"}
    given = [f"{key}='{path}'" for key, path in paths.items()]
    return configuration.compose("precompute", [*given, "image_size=32", *more])


@pytest.fixture
def made(shapes, system, tmp_path):
    return precompute(config(shapes / "shapes" / "train", tmp_path / "out", system))


def contents(folder):
    """All tensors; files of the same may list their metadata in another order."""
    return {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def test_what_is_kept_is_what_the_encoders_say(made, shapes, system):
    found, keys, captions = read_shard(made / "00001.safetensors")
    samples = list(read_samples([str(shapes / "shapes" / "train" / "00001.tar")], Skipped(max_bad_share=0.0)))
    assert keys == [s.key for s in samples] and captions == [s.caption for s in samples]
    clip, movq = trained(system / "clip"), trained(system / "movq")
    text = clip.encode_text(captions)
    near = dict(rtol=1e-5, atol=1e-5)
    pixels = torch.stack([ClipPixels(size=32)(s.image) for s in samples])
    torch.testing.assert_close(found["image_emb"], clip.encode_image(pixels), **near)
    torch.testing.assert_close(found["text_emb"], text.emb, **near)
    assert found["text_tokens"].dtype == torch.float16
    torch.testing.assert_close(found["text_tokens"].float(), text.tokens, rtol=2**-10, atol=1e-6)
    assert torch.equal(found["text_mask"], text.mask)
    z = movq.encode(torch.stack([Pixels(size=32)(s.image) for s in samples]))
    torch.testing.assert_close(found["z"], z, **near)


def test_the_batch_size_moves_nothing(made, shapes, system, tmp_path):
    other = precompute(config(shapes / "shapes" / "train", tmp_path / "other", system, "batch_size=7"))
    one, two = (read_shard(folder / "00000.safetensors")[0] for folder in (made, other))
    for name in one:
        torch.testing.assert_close(one[name].float(), two[name].float(), rtol=1e-3, atol=1e-3)


def test_a_second_run_does_nothing_and_a_deleted_shard_comes_back(made, shapes, system, monkeypatch):
    before = contents(made)
    assert read_manifest(made)["count"] == 48
    calls, columns = [], Encoders.columns
    monkeypatch.setattr(Encoders, "columns", lambda self, samples: calls.append(len(samples)) or columns(self, samples))
    again = config(shapes / "shapes" / "train", made, system)
    precompute(again)
    assert calls == []
    (made / "00001.safetensors").unlink()
    precompute(again)
    assert calls == [24]
    torch.testing.assert_close(contents(made), before, rtol=0, atol=0)


def test_interrupted_and_gone_on_with(made, shapes, system, tmp_path, monkeypatch):
    out, columns, calls = tmp_path / "cut", Encoders.columns, []

    def interrupted(self, samples):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(1)
        return columns(self, samples)

    monkeypatch.setattr(Encoders, "columns", interrupted)
    with pytest.raises(KeyboardInterrupt):
        precompute(config(shapes / "shapes" / "train", out, system))
    assert sorted(p.name for p in out.iterdir()) == ["00000.safetensors", "begun.json"]
    monkeypatch.setattr(Encoders, "columns", columns)
    precompute(config(shapes / "shapes" / "train", out, system))
    torch.testing.assert_close(contents(out), contents(made), rtol=0, atol=0)


def test_other_encoders_and_other_sizes_are_refused(made, shapes, system, tmp_path):
    with pytest.raises(ValueError, match="was begun with .*delete it, or write to another folder"):
        precompute(config(shapes / "shapes" / "train", made, system, "image_size=64"))
    untrained("clip", tmp_path, "stage.network.vision.layers=2")
    with pytest.raises(ValueError, match="was begun with"):
        precompute(config(shapes / "shapes" / "train", made, system, f"clip='{tmp_path}/clip'"))


def test_bad_samples_are_skipped_and_named(system, tmp_path, capsys):
    members = {f"{at:09d}": sample(at) for at in range(12)}
    members["000000003"] = sample(3, png=b"no picture")
    members["000000005"] = sample(5, txt=None, json=None)
    write_tar(tmp_path / "set" / "00000.tar", members)
    out = precompute(config(tmp_path / "set", tmp_path / "out", system, "max_bad_share=0.5"))
    told = capsys.readouterr().out
    assert "2 of 12 samples cannot be used" in told and "00000/000000003" in told and "00000/000000005" in told
    assert read_manifest(out)["count"] == 10
    with pytest.raises(ValueError, match="more than max_bad_share=0.1") as refusal:
        precompute(config(tmp_path / "set", tmp_path / "strict", system))
    assert "00000/000000003" in message(refusal.value)
    assert not (tmp_path / "strict" / "manifest.json").exists()
    assert not list((tmp_path / "strict").glob("*.safetensors"))
