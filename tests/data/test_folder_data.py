"""A folder of pictures is data for every stage that reads pictures, and for `precompute`."""

import json

import pytest
from fixtures.system import config, untrained
from PIL import Image

from open_kandinsky.config import compose
from open_kandinsky.data.folder import PER_SHARD, pairs_of
from open_kandinsky.data.tar.sample import IMAGES
from open_kandinsky.data.transforms import open_image
from open_kandinsky.precompute import precompute
from open_kandinsky.train import train


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """24 pictures, of which one is broken and one has no caption, and a row whose picture is gone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pairs_of.cache_clear()
    root = tmp_path / "my pictures"
    root.mkdir()
    rows = [{"file_name": "gone.png", "text": "nothing"}]
    for number in range(24):
        Image.new("RGBA", (40, 32), (number * 10, 0, 0, 255 * (number % 2))).save(root / f"{number:02d}.png")
        if number != 5:
            rows.append({"file_name": f"{number:02d}.png", "text": f"picture {number}"})
    (root / "07.png").write_bytes(b"no picture")
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def typed(stage, root, folder, *more):
    data = [f"data.path='{folder}'", "data.batch_size=4", "data.workers=0", "data.max_bad_share=0.2"]
    data += ["data.urls=null", "data.val_urls=null"]  # which the toy experiments name
    return config(stage, root, "data=folder", *data, "trainer.max_steps=2", f"run_dir='{root}/run_{stage}'", *more)


@pytest.mark.parametrize("stage", ["movq", "clip"])
def test_a_stage_trains_on_a_folder(folder, tmp_path, stage):
    in_memory = ["data.in_memory=false"] + (["data.distinct_captions=false"] if stage == "clip" else [])
    run = train(typed(stage, tmp_path, folder, *in_memory, f"data.val_path='{folder}'"))
    assert (run / "weights.safetensors").is_file()
    logged = (run / "metrics.csv").read_text()
    assert "train/loss" in logged and "val/" in logged


def test_bad_rows_are_counted_by_their_reason(folder, tmp_path):
    with pytest.raises(ValueError) as refused:
        train(typed("movq", tmp_path, folder, "data.in_memory=true", "data.max_bad_share=0.01"))
    for reason in ("missing image", "missing caption", "unreadable image"):
        assert reason in str(refused.value)


def test_precompute_reads_a_folder_and_sees_what_changed(folder, tmp_path):
    untrained("clip", tmp_path)
    out = ["max_bad_share=0.2", f"out='{tmp_path}/latents'", f"clip='{tmp_path}/clip'", "batch_size=8"]
    cfg = compose.compose("precompute", [f"urls='folder:{folder}'", *out])
    made = precompute(cfg)
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["images"] == 22 if "images" in manifest else True
    assert [path.name for path in sorted(made.glob("0*.safetensors"))] == ["00000.safetensors"]
    precompute(cfg)  # nothing left to do
    Image.new("RGB", (40, 32), (1, 2, 3)).save(folder / "03.png")
    pairs_of.cache_clear()
    with pytest.raises(ValueError, match="stale shards"):
        precompute(cfg)


def test_transparent_pictures_stand_before_the_colour_that_is_named(folder, tmp_path):
    data = (folder / "00.png").read_bytes()
    assert open_image(data).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(data, background="#102030").getpixel((0, 0)) == (16, 32, 48)
    with pytest.raises(Exception, match="background='no colour': no colour; give a name"):
        train(typed("movq", tmp_path, folder, "data.background='no colour'"))


def test_shards_beside_a_folder_and_mistyped_keys_are_refused(folder, tmp_path):
    with pytest.raises(Exception, match="data=folder reads data.path, and not data.urls=elsewhere"):
        train(typed("movq", tmp_path, folder, "data.urls=elsewhere"))
    with pytest.raises(ValueError, match="data takes no 'val_pth'|val_path"):
        typed("movq", tmp_path, folder, "+data.val_pth=x")


def test_a_folder_reads_the_pictures_that_tars_hold():
    from open_kandinsky.data import folder as folders

    assert {ending.removeprefix(".") for ending in folders.IMAGES} == set(IMAGES) and PER_SHARD == 1000
