"""generate writes each picture once, knows its own request again, and says what is wrong before it writes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_kandinsky import configuration
from open_kandinsky.data.prompts import read_prompts
from open_kandinsky.evaluation import gallery
from open_kandinsky.evaluation.gallery import read_parameters
from open_kandinsky.generate import generate, main
from open_kandinsky.weights import store


@pytest.fixture
def weights(system):
    return system


@pytest.fixture
def asked(weights, tmp_path):
    """A request's config from overrides, with few steps."""

    def asked(*overrides, out="out", prompts="[a red circle, a blue square]"):
        paths = [f"weights='{weights}'", f"out='{tmp_path / out}'"]
        few = [] if any("mode=" in o for o in overrides) else ["prior_steps=2"]
        wanted = [f"prompts={prompts}"] if prompts and few else []
        return configuration.compose("generate", [*paths, "steps=2", *few, *wanted, *overrides])

    return asked


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (50, 40), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def path_in(cfg, name):
    return Path(cfg.out) / name


def numbered(folder):
    return {path.name: path.read_bytes() for path in folder.glob("0*.png")}


def test_a_picture_carries_what_it_was_made_by(asked, weights):
    out = generate(asked("count=2", "seed=7", "size=[40,24]"))
    text = read_parameters((out / "00003.png").read_bytes())
    assert (text["prompt"], text["seed"], text["mode"]) == ("a blue square", 10, "text_to_image")
    assert (text["steps"], text["scale"], text["sampler"]) == (2, 1.5, "ddpm")
    assert (text["prior_steps"], text["prior_scale"]) == (2, 1.0)
    assert text["weights_sha256"]["decoder"] == store.sha256(weights / "decoder" / store.WEIGHTS)
    assert Image.open(out / "00003.png").size == (40, 24) and text["size"] == [40, 24]


def test_the_manifest_has_a_line_for_each_picture(asked):
    out = generate(asked())
    assert [(line["file"], line["prompt"], line["seed"]) for line in manifest(out)] == [
        ("00000.png", "a red circle", 0),
        ("00001.png", "a blue square", 1),
    ]
    names = {path.name for path in out.iterdir()}
    assert names == {"00000.png", "00001.png", "manifest.jsonl", "request.json", "sheet.png"}


def test_a_prompt_in_any_script_comes_back(asked):
    out = generate(asked(prompts='["Kreis, grün — 圆 🔴"]'))
    assert manifest(out)[0]["prompt"] == "Kreis, grün — 圆 🔴"


def test_a_picture_is_its_seeds_in_any_batch(asked):
    ddim = "sampler=ddim"  # from t = 501; at t = 999 an untrained network's x_0 is its eps, 25 times, rounding and all
    together = generate(asked("count=3", ddim, out="a"))
    apart = generate(asked("count=3", "batch_size=1", ddim, out="b"))
    for name in numbered(together):
        a, b = (np.asarray(Image.open(folder / name), dtype=int) for folder in (together, apart))
        assert abs(a - b).max() <= 1  # sums over a batch are rounded in another order
    assert len(set(numbered(together).values())) == 6


def test_a_request_goes_on_where_it_stopped(asked, monkeypatch):
    whole = numbered(generate(asked("batch_size=1", out="whole")))
    cfg, add = asked("batch_size=1"), gallery.Gallery.add

    def stopped(self, pictures, images, parameters):
        if pictures[0].index == 1:
            raise KeyboardInterrupt
        add(self, pictures, images, parameters)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gallery.Gallery, "add", stopped)
        generate(cfg)
    before = path_in(cfg, "00000.png").stat().st_mtime_ns
    assert not path_in(cfg, "manifest.jsonl").exists()
    assert numbered(generate(cfg)) == whole
    assert path_in(cfg, "00000.png").stat().st_mtime_ns == before


def test_what_is_complete_is_not_drawn_again(asked, monkeypatch):
    cfg = asked()
    made = numbered(generate(cfg))
    monkeypatch.setattr("open_kandinsky.generate.load", None)
    assert numbered(generate(cfg)) == made


@pytest.mark.parametrize(("other", "named"), {"seed=1": "pictures", "scale=2": "scale", "+x": "weights_sha256"}.items())
def test_another_requests_folder_is_refused(asked, weights, tmp_path, other, named):
    generate(asked())
    cfg = asked(*[] if other == "+x" else [other])
    if other == "+x":
        cfg.weights = {"": str(weights), "clip": str(shutil.copytree(weights / "clip", tmp_path / "clip"))}
        state = store.read(tmp_path / "clip" / store.WEIGHTS)
        store.write(tmp_path / "clip" / store.WEIGHTS, {name: value + 1 for name, value in state.items()})
    with pytest.raises(ValueError, match=f"another request, which differs in {named}: choose another"):
        generate(cfg)


def test_a_folder_of_something_else_is_refused(asked, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty and holds no pictures of ours"):
        generate(asked())


def test_variations_of_each_image(asked, picture):
    out = generate(asked("mode=variations", f"images=['{picture}']", "count=3"))
    assert [(line["prompt"], line["seed"]) for line in manifest(out)] == [(str(picture), i) for i in range(3)]
    assert len(set(numbered(out).values())) == 3


def test_a_mix_tells_pictures_from_texts(asked, picture):
    parts = [f"parts=['{picture}', 'a red circle']", "part_weights=[0.3, 0.7]"]
    out = generate(asked("mode=mix", *parts, "count=2"))
    assert manifest(out)[1]["prompt"] == f"0.3 * {picture} + 0.7 * a red circle"
    assert len(set(numbered(out).values())) == 2


def test_prompts_from_a_text_file(tmp_path, asked):
    (tmp_path / "p.txt").write_text("a red circle\n\n  a blue square, above\n")
    out = generate(asked(f"prompts_file='{tmp_path / 'p.txt'}'", prompts=None))
    assert [line["prompt"] for line in manifest(out)] == ["a red circle", "a blue square, above"]


def test_a_csvs_own_seed_goes_first(tmp_path, asked):
    (tmp_path / "p.csv").write_text('seed,prompt\n40,"a circle, red"\n,a square\n', encoding="utf-8-sig")
    out = generate(asked(f"prompts_file='{tmp_path / 'p.csv'}'", "count=2", "seed=5", prompts=None))
    assert [(line["prompt"], line["seed"]) for line in manifest(out)] == [
        ("a circle, red", 40),
        ("a circle, red", 41),
        ("a square", 7),
        ("a square", 8),
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.txt", b"\n \n", "holds no prompt"),
        ("p.txt", b"\xff\xfe\x00", "not a text in UTF-8"),
        ("p.csv", b"caption\na\n", "needs a column 'prompt'; it has caption"),
        ("p.csv", b"prompt,seed\na,\n\n,3\n", "line 4: no prompt"),
        ("p.csv", b"prompt,seed\na,x\n", "line 2: seed 'x' is no whole number"),
    ],
)
def test_a_prompts_file_that_is_none(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


MISTAKES = {
    "prompts=[]": "nothing to draw: mode=text_to_image needs prompts or prompts_file",
    "prompts_file=gone.txt prompts=[]": "prompts_file=gone.txt: no such file",
    "prompts_file=gone.txt": "prompts and prompts_file are both given",
    "mode=text_to_imge": "no such mode; nearest 'text_to_image'; known: text_to_image, variations, mix",
    "mode=variations images=[gone.png]": "no such picture: 'gone.png'",
    "mode=variations": "nothing to draw: mode=variations needs images",
    "mode=variations images=[a.png] prior_steps=3": "mode=variations does not read prior_steps; it reads images",
    "mode=mix parts=[gone.png] part_weights=[1]": "no such picture: 'gone.png'",
    "mode=mix parts=[a,b] part_weights=[1]": "2 parts but 1 part_weights",
    "mode=mix parts=[a] part_weights=[heavy]": "part_weights: 'heavy' is no number",
    "sampler=dim": "no such sampler; nearest 'ddim'",
    "size=0": "size=0: a number of pixels or [width, height], each at least 1",
    "size=[64]": "size=[64]: a number of pixels",
    "size=big": "size=big: a number of pixels",
    "count=0": "count=0: a whole number, at least 1",
    "batch_size=0": "batch_size=0: a whole number, at least 1",
    "seed=-1": "seed -1: seeds are from 0",
    "seed=4294967295": "seed 4294967296: seeds are from 0",
    "steps=0": "steps=0: a whole number, at least 1",
    "prior_steps=few": "prior_steps=few: a whole number",
    "steps=1001": "steps=1001: a schedule of 1000 timesteps allows 1 to 1000 steps",
    "scale=high": "scale=high: not a number",
    "seed=x": "seed=x: not a number",
    "device=gpu": "device=gpu: no such device",
    "weights=nowhere": "weights: the clip is looked for in nowhere/clip",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_told_and_nothing_is_written(asked, tmp_path, typed):
    with pytest.raises(ValueError) as refusal:
        generate(asked(*typed.split()))
    assert MISTAKES[typed] in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_picture_is_named(asked, tmp_path):
    (tmp_path / "no.png").write_text("text")
    with pytest.raises(ValueError, match=r"no\.png: not a usable image"):
        generate(asked("mode=variations", f"images=['{tmp_path / 'no.png'}']"))


def test_the_command_line(weights, tmp_path, monkeypatch, capsys):
    command = ["generate", 'prompts=["a red circle"]', f"weights='{weights}'", f"out='{tmp_path}/made'", "steps=1"]
    monkeypatch.setattr("sys.argv", [*command, "prior_steps=1"])
    main()
    assert capsys.readouterr().out == f"generated: {tmp_path}/made\n"
    assert (tmp_path / "made" / "sheet.png").is_file()
