"""Shards of images to shards of latents and embeddings, whoever makes them and however often they are stopped."""

import hashlib
import json
import os
import random
import shutil
import time

import fsspec
import pytest
import torch
from fixtures.precomputing import begun, config, files, words
from fixtures.shards import sample, write_tar
from fixtures.system import untrained
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from open_kandinsky.core.failures import message
from open_kandinsky.data.cache.encode import Encoders
from open_kandinsky.data.cache.folder import read_manifest, read_null
from open_kandinsky.data.cache.rows import before, padded
from open_kandinsky.data.cache.shard import read_about, read_shard
from open_kandinsky.data.cached_data import CachedData
from open_kandinsky.data.tar.reader import read_samples
from open_kandinsky.data.tar.stats import SampleStats
from open_kandinsky.data.transforms import ClipPixels, Pixels
from open_kandinsky.loading import find, network, trained
from open_kandinsky.precompute import precompute

LONG = 150  # seconds: then something waits for nothing


@pytest.fixture(scope="module")
def tars(shapes):
    return shapes / "shapes" / "train"


@pytest.fixture(scope="module")
def first(tars, system, tmp_path_factory):
    return precompute(config(tars, tmp_path_factory.mktemp("first") / "out", system))


@pytest.fixture
def made(first, tmp_path):
    return shutil.copytree(first, tmp_path / "out")


def batches(folder, *fields, **changes):
    settings = dict(val_path=None, padding=True, batch_size=24, limit=None, seed=0)
    settings |= dict(in_memory=True, workers=0, shuffle_buffer=8, dims={}, sizes={})
    return CachedData(path=str(folder), fields=list(fields), **settings | changes).table


def near(found, expected, *, half=False):
    torch.testing.assert_close(found, expected, rtol=2**-10 if half else 1e-5, atol=1e-5)


def test_what_is_kept_is_what_the_encoders_say(made, tars, system):
    samples = list(read_samples([str(tars / "00000.tar")], SampleStats(max_bad_share=0.0)))
    clip, movq = trained(system / "clip"), trained(system / "movq")
    text = clip.encode_text([s.caption for s in samples])
    batch = batches(made, "image_emb", "z", "text_emb", "text_tokens", "text_mask").batch(list(range(24)), 0)
    assert batch["key"] == [s.key for s in samples] and batch["caption"] == [s.caption for s in samples]
    near(batch["image_emb"], clip.encode_image(torch.stack([ClipPixels(size=32)(s.image) for s in samples])))
    near(batch["z"], movq.encode(torch.stack([Pixels(size=32)(s.image) for s in samples])), half=True)
    near(batch["text_emb"], text.emb)
    near(batch["text_tokens"], text.tokens, half=True)
    assert torch.equal(batch["text_mask"], text.mask)
    stored = read_shard(made / "00000.safetensors").columns
    assert stored["text_tokens"].dtype == stored["z"].dtype == torch.float16
    assert len(stored["text_tokens"]) == 24 * 16, "CLIP's states of padding differ, and all are kept"


def test_words_alone_are_fewer_and_the_same(made, tars, system, tmp_path):
    out = precompute(config(tars, tmp_path / "words", system, "text_states=words", "latents=float32"))
    text = ["text_emb", "text_tokens", "text_mask"]
    fewer = batches(out, "z", *text, padding=False).batch(list(range(48)), 0)
    whole = batches(made, "z", *text).batch(list(range(48)), 0)
    mask = whole["text_mask"]
    assert torch.equal(fewer["text_mask"], mask) and not mask.all()
    assert torch.equal(fewer["text_tokens"][mask], whole["text_tokens"][mask])
    assert torch.equal(fewer["z"].half().float(), whole["z"])
    assert len(read_shard(out / "00000.safetensors").columns["text_tokens"]) == mask[:24].sum()
    with pytest.raises(ValueError, match="states of words alone"):
        batches(out, *text)


@pytest.mark.slow
def test_a_prior_gives_the_same_for_words_alone(made, tars, system, tmp_path):
    out = precompute(config(tars, tmp_path / "words", system, "text_states=words"))
    prior, said = trained(system / "prior"), []
    for folder in (out, made):
        batch = batches(folder, "text_tokens", "text_emb", "text_mask", padding=False).batch(list(range(48)), 0)
        prefix = prior.prefix(batch["text_tokens"], batch["text_emb"], batch["text_mask"])
        said.append(prior(torch.ones(48, 32), torch.full((48,), 7), prefix))
    torch.testing.assert_close(*said, rtol=0, atol=0)


@pytest.mark.slow
def test_the_batch_size_moves_nothing(made, tars, system, tmp_path):
    other = precompute(config(tars, tmp_path / "other", system, "batch_size=7"))
    one, two = (read_shard(folder / "00000.safetensors").columns for folder in (made, other))
    for name in one:
        torch.testing.assert_close(one[name].float(), two[name].float(), rtol=1e-3, atol=1e-3)


def counted(monkeypatch):
    calls, rows = [], Encoders.rows
    monkeypatch.setattr(Encoders, "rows", lambda self, batch: calls.append(len(batch)) or rows(self, batch))
    return calls


def test_a_second_run_loads_nothing_and_a_deleted_shard_comes_back(made, tars, system, monkeypatch):
    written = files(made)
    assert read_manifest(made)["count"] == 48
    monkeypatch.setattr("open_kandinsky.loading.network", None)
    precompute(config(tars, made, system))
    monkeypatch.undo()
    calls = counted(monkeypatch)
    (made / "00001.safetensors").unlink()
    precompute(config(tars, made, system))
    assert calls == [24] and files(made) == written


def test_interrupted_and_gone_on_with(made, tars, system, tmp_path, monkeypatch):
    out, rows, calls = tmp_path / "cut", Encoders.rows, []

    def interrupted(self, samples):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(1)
        return rows(self, samples)

    monkeypatch.setattr(Encoders, "rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        precompute(config(tars, out, system))
    assert sorted(files(out)) == ["00000.safetensors", "begun.json", "null.safetensors"]
    monkeypatch.setattr(Encoders, "rows", rows)
    precompute(config(tars, out, system))
    assert files(out) == files(made)


@pytest.fixture(scope="module")
def many(tars, system, tmp_path_factory):
    """The set as eight tars, and what one process makes of it."""
    root = tmp_path_factory.mktemp("many")
    found = list(read_samples(str(tars), SampleStats(max_bad_share=0.0)))
    for shard in range(8):
        members = {s.key.rpartition("/")[2]: sample(at, txt=s.caption.encode()) for at, s in enumerate(found[shard::8])}
        write_tar(root / "set" / f"{shard:05d}.tar", members)
    precompute(config(root / "set", root / "alone", system, "batch_size=2"))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_as_many_processes_as_there_are(many, system, tmp_path, processes):
    typed = words(many / "set", tmp_path / "out", system, "batch_size=2")
    together = [begun(typed) for _ in range(processes)]
    for process in together:
        process.join(LONG)
        process.kill()
    assert [process.exitcode for process in together] == [0] * processes
    assert files(tmp_path / "out") == files(many / "alone")
    assert not list((tmp_path / "out" / ".claims").iterdir())


@pytest.mark.slow
def test_killed_in_the_middle_of_a_shard_and_gone_on_with(many, system, tmp_path):
    typed, claims, moments = (
        words(many / "set", tmp_path / "out", system, "batch_size=2"),
        tmp_path / "out/.claims",
        random.Random(0),
    )
    for _ in range(3):
        process, begin = begun(typed), time.monotonic()
        while not list(claims.glob("0*.claim")) and process.is_alive() and time.monotonic() - begin < LONG:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.join()
    last = [begun(typed), begun(typed)]
    for process in last:
        process.join(LONG)
        process.kill()
    assert [process.exitcode for process in last] == [0, 0]
    found = {name: data for name, data in files(tmp_path / "out").items() if not name.endswith(".part")}
    assert found == files(many / "alone")


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ("image_size=64", "image_size=32, not 64"),
        ("text_states=words", "text_states=all, not words"),
        ("latents=float32", "latents=float16, not float32"),
        ("precision=bfloat16", "precision=float32, not bfloat16"),
        ("caption_places=[txt]", r"caption_places=\['txt', 'caption'\], not \['txt'\]"),
        ("movq=null", "encoders.movq=.*, not None; image_size=32, not None"),
    ],
)
def test_another_recipe_is_refused(made, tars, system, other, told):
    with pytest.raises(ValueError, match=f"was begun with {told}: delete it, or write to another folder"):
        precompute(config(tars, made, system, other))


@pytest.mark.slow
def test_other_weights_and_another_structure_of_the_same_are_refused(made, tars, system, tmp_path):
    untrained("clip", tmp_path, "stage.network.vision.layers=2")
    with pytest.raises(ValueError, match="was begun with encoders.clip="):
        precompute(config(tars, made, system, f"clip='{tmp_path}/clip'"))
    shutil.copytree(system / "movq", tmp_path / "movq")
    text = (tmp_path / "movq" / "config.yaml").read_text()
    assert text.count("quantise_latents: false") == 2
    (tmp_path / "movq" / "config.yaml").write_text(text.replace("quantise_latents: false", "quantise_latents: true"))
    with pytest.raises(ValueError, match="was begun with encoders.movq="):
        precompute(config(tars, made, system, f"movq='{tmp_path}/movq'"))


def test_a_folder_that_holds_another_network_is_refused(tars, system, tmp_path):
    with pytest.raises(ValueError, match="movq holds weights of a movq, and a clip is wanted"):
        precompute(config(tars, tmp_path / "out", system, f"clip='{system}/movq'"))
    with pytest.raises(ValueError, match="the movq is looked for in .*nowhere"):
        precompute(config(tars, tmp_path / "out", system, f"movq='{system}/nowhere'"))


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("text_states=some", "text_states=some: words .* or all"),
        ("latents=bfloat16", "latents=bfloat16: choose one of float16, float32"),
        ("precision=float16", "precision=float16: choose one of float32, bfloat16"),
        ("workers=0", "workers=0: a whole number, at least 1"),
        ("caption_places=[]", "caption_places=.*say where captions lie"),
    ],
)
def test_choices_that_there_are_not(tars, system, tmp_path, typed, told):
    with pytest.raises(ValueError, match=told):
        precompute(config(tars, tmp_path / "out", system, typed))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def own(made, tars, system, tmp_path):
    """A copy of the set that may be spoiled, and its cache."""
    shutil.copytree(tars, tmp_path / "set")
    return tmp_path / "set"


def test_what_each_shard_was_made_from_is_kept_with_it(made, own):
    about = read_about(made / "00001.safetensors")
    assert about["input"]["file"] == "00001.tar"
    assert about["input"]["size"] == (own / "00001.tar").stat().st_size
    sha256 = hashlib.sha256((own / "00001.tar").read_bytes()).hexdigest()
    assert about["input"]["sha256"] == sha256 and (about["images"], about["captions"]) == (24, 24)
    assert about["recipe"].keys() >= {"encoders", "image_size", "crop", "text_states", "latents", "precision"}


def test_an_input_that_was_only_touched_is_no_other(made, own, system, monkeypatch):
    written, calls = files(made), counted(monkeypatch)
    os.utime(own / "00001.tar")
    precompute(config(own, made, system))
    manifest = json.loads(files(made).pop("manifest.json"))
    assert calls == [] and manifest["made_of"] == json.loads(written["manifest.json"])["made_of"]


def grown(path):
    path.write_bytes(path.read_bytes() + bytes(512))


def other_bytes(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "told"), [(grown, "had .* bytes, and has"), (other_bytes, "has other bytes than it")]
)
def test_what_was_made_of_another_tar_is_stale_and_named(made, own, system, spoil, told):
    written = files(made)
    spoil(own / "00001.tar")
    with pytest.raises(ValueError, match=f"stale shards: delete them, or write to another folder\n  00001: .*{told}"):
        precompute(config(own, made, system))
    assert files(made) == written, "neither mixed nor made again"
    (made / "00001.safetensors").unlink()
    precompute(config(own, made, system))
    assert read_manifest(made)["made_of"] != json.loads(written["manifest.json"])["made_of"]


@pytest.mark.slow
def test_a_shard_of_another_recipe_in_the_folder_is_stale(made, tars, system, tmp_path):
    other = precompute(config(tars, tmp_path / "other", system, "image_size=64"))
    shutil.copy(other / "00000.safetensors", made / "00000.safetensors")
    with pytest.raises(ValueError, match="stale shards.*\n  00000: made with image_size=64, not 32"):
        precompute(config(tars, made, system))


def test_orphans_are_named_and_left_out_and_new_tars_come_in(made, own, system, capsys):
    shutil.move(own / "00001.tar", own / "00002.tar")
    precompute(config(own, made, system))
    assert "1 shard(s) whose inputs are not among urls, left out of the manifest: 00001" in capsys.readouterr().out
    assert list(read_manifest(made)["shards"]) == ["00000.safetensors", "00002.safetensors"]
    assert (made / "00001.safetensors").is_file()
    keys = batches(made, "image_emb").key
    assert {key.partition("/")[0] for key in keys} == {"00000", "00002"}


def test_two_tars_of_one_name_are_refused(tars, system, tmp_path):
    for folder in "ab":
        shutil.copytree(tars, tmp_path / folder)
    cfg = config(tars, tmp_path / "out", system)
    cfg.urls = [str(tmp_path / "a"), str(tmp_path / "b")]
    with pytest.raises(ValueError, match="a/00000.tar' and .*b/00000.tar' are both called 00000.*two folders"):
        precompute(cfg)
    assert not (tmp_path / "out").exists()


def test_bad_samples_are_skipped_and_named(system, tmp_path, capsys):
    members = {f"{at:09d}": sample(at) for at in range(12)}
    members["000000003"] = sample(3, png=b"no picture")
    members["000000005"] = sample(5, txt=None, json=None)
    write_tar(tmp_path / "set" / "00000.tar", members)
    out = precompute(config(tmp_path / "set", tmp_path / "out", system, "max_bad_share=0.5"))
    told = capsys.readouterr().out
    assert "2 of 12 samples cannot be used" in told and "00000/000000003" in told and "00000/000000005" in told
    assert read_manifest(out)["count"] == 10 and read_manifest(out)["skipped"] == {"seen": 12, "bad": 2}
    precompute(config(tmp_path / "set", tmp_path / "out", system, "max_bad_share=0.5"))
    assert "2 of 12 samples cannot be used" in capsys.readouterr().out, "nor are they forgotten by another run"
    with pytest.raises(ValueError, match="more than max_bad_share=0.1") as refusal:
        precompute(config(tmp_path / "set", tmp_path / "strict", system))
    assert "00000/000000003" in message(refusal.value)
    assert not (tmp_path / "strict" / "manifest.json").exists()
    assert not list((tmp_path / "strict").glob("0*.safetensors"))


def test_tars_without_a_usable_sample_are_not_read_again(system, tmp_path, monkeypatch, capsys):
    write_tar(tmp_path / "set" / "00000.tar", {})
    write_tar(tmp_path / "set" / "00001.tar", {"1": sample(1), "2": sample(2)})
    write_tar(tmp_path / "set" / "00002.tar", {"3": sample(3, png=b"no picture")})
    typed = config(tmp_path / "set", tmp_path / "out", system, "max_bad_share=0.5")
    assert read_manifest(precompute(typed))["shards"] == {"00001.safetensors": 2}
    calls = counted(monkeypatch)
    precompute(typed)
    assert calls == [] and len(batches(tmp_path / "out", "image_emb", batch_size=2).key) == 2


def test_a_tar_that_is_cut_keeps_what_lies_before(system, tmp_path, capsys):
    path = tmp_path / "set" / "00000.tar"
    write_tar(path, {f"{at}": sample(at) for at in range(8)})
    path.write_bytes(path.read_bytes()[: 5 * 3 * 1024 + 700])
    out = precompute(config(tmp_path / "set", tmp_path / "out", system, "max_bad_share=0.5"))
    assert read_manifest(out)["count"] == 5 and "truncated or unreadable tar: 1" in capsys.readouterr().out


def test_several_captions_are_kept_and_each_is_its_own(system, tmp_path):
    members = {}
    for at in range(6):
        info = {"caption": f"c{at}", "blip_caption": [f"blip {at} {n}" for n in range(at % 3)], "alt": f"  alt {at} "}
        members[f"{at}"] = sample(at, json=json.dumps(info).encode())
    write_tar(tmp_path / "set" / "00000.tar", members)
    out = precompute(
        config(tmp_path / "set", tmp_path / "out", system, "caption_places=[txt,caption,blip_caption,alt]")
    )
    rows = read_shard(out / "00000.safetensors")
    expected = [[f"c{at}", *(f"blip {at} {n}" for n in range(at % 3)), f"alt {at}"] for at in range(6)]
    assert rows.caption == [caption for those in expected for caption in those]
    assert rows.columns["caption_from"].diff().tolist() == [2, 3, 4, 2, 3, 4]
    near(rows.columns["text_emb"], trained(system / "clip").encode_text(rows.caption).emb)
    manifest = read_manifest(out)
    assert (manifest["count"], manifest["captions_count"]) == (6, 18)


def test_tars_from_elsewhere(made, own, system, tmp_path):
    remote = fsspec.filesystem("memory")
    for path in own.iterdir():
        if path.suffix == ".tar":
            remote.pipe(f"/precompute/{path.name}", path.read_bytes())
    out = precompute(config("memory://precompute/*.tar", tmp_path / "remote", system))
    for name in ("00000.safetensors", "00001.safetensors"):
        one, other = (load_file(folder / name) for folder in (made, out))
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert read_about(out / name)["input"]["sha256"] == read_about(made / name)["input"]["sha256"]
    remote.pipe("/precompute/00001.tar", (own / "00000.tar").read_bytes())
    with pytest.raises(ValueError, match="stale shards.*\n  00001: "):
        precompute(config("memory://precompute/*.tar", out, system))
    remote.rm("/precompute", recursive=True)


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_check_agrees_with_what_was_made(tars, system, tmp_path, capsys, precision):
    typed = [tars, tmp_path / "out", system, f"precision={precision}"]
    written = files(precompute(config(*typed)))
    precompute(config(*typed, "check=7"))
    assert "compared 7 samples of 2 shards with the encoders: no difference" in capsys.readouterr().out
    assert files(tmp_path / "out") == written


def spoiled(path, name, change):
    with safe_open(path, "pt") as shard:
        metadata, tensors = shard.metadata(), {key: shard.get_tensor(key).clone() for key in shard.keys()}
    tensors[name] = change(tensors[name])
    save_file(tensors, path, metadata=metadata)


QUICK, SLOW = ["z", "text_words"], ["image_emb", "text_emb", "text_tokens"]


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_check_names_what_is_not_so(made, tars, system, name):
    spoiled(made / "00001.safetensors", name, lambda x: x + 1 if name == "text_words" else x * 1.01)
    with pytest.raises(ValueError, match=rf"00001.safetensors: 00001/\d+: {name} is off by") as refusal:
        precompute(config(tars, made, system, "check=6"))
    assert "00000.safetensors" not in str(refusal.value) and message(refusal.value) == str(refusal.value)


def test_a_check_names_missing_orphaned_and_stale_shards(made, own, system):
    shutil.copy(own / "00000.tar", own / "00002.tar")
    shutil.move(own / "00001.tar", own / "00003.tar")
    grown(own / "00000.tar")
    with pytest.raises(ValueError) as refusal:
        precompute(config(own, made, system, "check=4"))
    told = str(refusal.value)
    assert (
        "stale: 00000: " in told and "missing: 00002" in told and "missing: 00003" in told and "orphan: 00001" in told
    )
    assert not (made / "00002.safetensors").exists()


@pytest.fixture(scope="module")
def kandinsky21(tmp_path_factory):
    """A folder as diffusers leave it, encoders of random weights."""
    from fixtures.theirs import write_kandinsky21

    return write_kandinsky21(tmp_path_factory.mktemp("theirs"))


@pytest.mark.slow
def test_published_folders_and_the_decoders_own_text_encoder(kandinsky21, tars, system, tmp_path, capsys):
    typed = [f"{part}='{kandinsky21}'" for part in ("clip", "movq", "text")] + ["image_size=32"]
    out = precompute(config(tars, tmp_path / "out", system, *typed))
    text, captions = network(find(kandinsky21)["text"]), read_shard(out / "00000.safetensors").caption
    said = text.encode_text(captions)
    batch = batches(out, "z", "image_emb", "text_emb", "text_tokens", "text_mask").batch(list(range(24)), 0)
    near(batch["text_emb"], said.emb)
    near(batch["text_tokens"], said.tokens, half=True)
    assert torch.equal(batch["text_mask"], said.mask)
    stored = read_shard(out / "00000.safetensors").columns["text_tokens"]
    assert len(stored) == (said.mask.sum(1) + 1).clamp(max=said.mask.shape[1]).sum(), "words, and one state of padding"
    null = text.null_text()
    assert torch.equal(read_null(out)["text_tokens"], null.tokens) and torch.equal(read_null(out)["text_emb"], null.emb)
    precompute(config(tars, out, system, *typed, "check=4"))
    assert "no difference" in capsys.readouterr().out


def test_xlm_rs_padding_has_one_state_a_caption():
    """It has one position, one token, and sees the words alone, as they see nothing of it."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    model = XLMRobertaModel(XLMRobertaConfig(vocab_size=50, max_position_embeddings=90, pad_token_id=1, **sizes)).eval()
    words = torch.tensor([2, 9, 40, 76, 77])
    mask = before(words, 77)
    token = torch.randint(3, 50, (5, 77)).masked_fill(~mask, 1)
    with torch.inference_mode():
        states = model(input_ids=token, attention_mask=mask.long()).last_hidden_state
    flat = torch.cat([row[: count + 1] for row, count in zip(states, words.tolist(), strict=True)])
    rows = (words + 1).clamp(max=77)
    again = padded(flat, rows.cumsum(0) - rows, rows, 77)
    torch.testing.assert_close(again, states, rtol=0, atol=1e-6)


def test_captions_that_are_too_long_are_told_once_and_counted(system, tmp_path, capsys):
    long = {"txt": b"a red circle " * 40}
    write_tar(tmp_path / "tars" / "00000.tar", {f"{at:09d}": sample(at, **long) for at in range(5)})
    with pytest.warns(UserWarning, match="its end is not read") as caught:
        precompute(config(tmp_path / "tars", tmp_path / "out", system, "batch_size=2"))
    assert sum("is not read" in str(one.message) for one in caught) == 1
    assert "5 captions are longer than the text encoder reads" in capsys.readouterr().out
