"""generate writes each picture once, knows its own request again, and says what is wrong before it writes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.programs import environment
from PIL import Image

from open_kandinsky.config import compose
from open_kandinsky.core.failures import message
from open_kandinsky.generate import generate, main
from open_kandinsky.generation import gallery
from open_kandinsky.generation.gallery import read_parameters
from open_kandinsky.generation.prompts import read_prompts
from open_kandinsky.loading import load
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
        return compose.compose("generate", [*paths, "steps=2", *few, *wanted, *overrides])

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
    decoder, prior = (getattr(load(weights), name).sampling for name in ("decoder", "prior"))
    assert (text["steps"], text["scale"], text["sampler"]) == (2, decoder.scale, decoder.sampler)
    assert (text["prior_steps"], text["prior_scale"], text["prior_sampler"]) == (2, prior.scale, prior.sampler)
    assert text["weights_sha256"]["decoder"] == store.sha256(weights / "decoder" / store.WEIGHTS)
    assert Image.open(out / "00003.png").size == (40, 24) and text["size"] == [40, 24]


def pixels(path):
    return np.asarray(Image.open(path)).astype(float)


@pytest.mark.slow
def test_weights_of_less_precision_draw_nearly_the_same_and_the_request_says_so(asked):
    exact, less = generate(asked()), generate(asked("dtype=bfloat16", out="less"))
    apart = np.abs(pixels(exact / "00000.png") - pixels(less / "00000.png"))
    assert 0 < apart.mean() < 4
    assert read_parameters((less / "00000.png").read_bytes())["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="dtype"):
        generate(asked("dtype=bfloat16"))


def test_without_a_compiler_nothing_is_compiled(asked, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="there is no 'no-such-compiler': install one"):
        generate(asked("compile=true", "weights=nowhere"))  # before anything is read


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a compiler")
def test_what_is_compiled_draws_the_same(asked, weights, tmp_path):
    """As a program of its own: what checks shapes here is not to be compiled."""
    plain = generate(asked())
    typed = ["prompts=[a red circle, a blue square]", f"weights={weights}", f"out={tmp_path / 'compiled'}"]
    program = [sys.executable, "-m", "open_kandinsky.generate", *typed, "steps=2", "prior_steps=2", "compile=true"]
    subprocess.run(program, check=True, cwd=tmp_path, env=environment())
    for name in ("00000.png", "00001.png"):
        assert np.abs(pixels(plain / name) - pixels(tmp_path / "compiled" / name)).max() <= 1


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_request_goes_on_with_the_same_batches_and_threads(asked, monkeypatch):
    """Stopped within a batch, and gone on with by a process of another number of threads: the same bits."""
    whole = numbered(generate(asked("count=3", "batch_size=4", out="whole")))
    cfg, write = asked("count=3", "batch_size=4"), gallery.files.write

    def stopped(path, data):
        if Path(path).name == "00002.png":
            raise KeyboardInterrupt
        write(path, data)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gallery.files, "write", stopped)
        generate(cfg)
    assert gallery.begun_with(path_in(cfg, "."))["threads"] == torch.get_num_threads() == 1
    torch.set_num_threads(2)
    try:
        assert numbered(generate(cfg)) == whole
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)
    with pytest.raises(ValueError, match=r"differs in batch_size \(4, now 5\): choose another folder, or repeat"):
        generate(asked("count=3", "batch_size=5"))


@pytest.mark.slow
def test_a_folder_of_a_version_before_goes_on(asked):
    """Its request had neither batch_size nor threads."""
    cfg = asked("count=2")
    made = numbered(generate(cfg))
    begun, path = gallery.begun_with(path_in(cfg, ".")), path_in(cfg, "request.json")
    path.write_text(json.dumps({k: v for k, v in begun.items() if k not in ("batch_size", "threads")}))
    path_in(cfg, "00001.png").unlink()
    assert numbered(generate(cfg)).keys() == made.keys()


def test_what_is_killed_in_its_first_write_goes_on(asked, tmp_path):
    """What it was writing is known by its name, and removed."""
    (tmp_path / "out").mkdir()
    process = subprocess.Popen(["true"])
    process.wait()
    part = tmp_path / "out" / f".request.json.{gallery.files.machine()}.{process.pid}.0123abcd.part"
    part.write_text("{")
    out = generate(asked())
    assert not part.exists() and (out / "manifest.jsonl").is_file()


def test_all_texts_of_a_picture_are_written_alike(asked):
    out = generate(asked("negative_decoder_prompt='\"a\" cross'", "sampler=ddim", "prior_sampler=ddpm"))
    with Image.open(out / "00000.png") as image:
        text = dict(image.text)
    assert (text["sampler"], text["prior_sampler"], text["dtype"]) == ("ddim", "ddpm", "float32")
    assert text["negative_decoder_prompt"] == '"a" cross' == manifest(out)[0]["negative_decoder_prompt"]
    assert manifest(out)[0]["steps"] == 2 and manifest(out)[0]["batch_size"] == 16


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
        cfg.weights = {"rest": str(weights), "clip": str(shutil.copytree(weights / "clip", tmp_path / "clip"))}
        state = store.read(tmp_path / "clip" / store.WEIGHTS)
        store.write(tmp_path / "clip" / store.WEIGHTS, {name: value + 1 for name, value in state.items()})
    with pytest.raises(ValueError, match=f"another request, which differs in {named}.*: choose another"):
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


@pytest.mark.slow
def test_pictures_between_two_have_one_seed(asked, picture):
    ends = f"between=['{picture}', 'a blue square']"
    few = ["mode=interpolate", "count=3", "seed=7", "prior_steps=2", "sampler=ddim"]
    together = generate(asked(ends, *few, out="a"))
    lines = manifest(together)
    shown = [str(picture), f"50% of the way from {picture} to a blue square", "a blue square"]
    assert [(line["prompt"], line["seed"], line["at"]) for line in lines] == [
        (text, 7, at) for text, at in zip(shown, (0.0, 0.5, 1.0), strict=True)
    ]
    assert levels(together) == pytest.approx(levels(generate(asked(ends, *few, "batch_size=1", out="b"))), abs=1)
    assert len(set(numbered(together).values())) == 3


@pytest.fixture
def photos(tmp_path):
    """Two pictures, a mask for each that is white on its right half, and one that is black."""
    for i, size in enumerate([(50, 40), (24, 33)]):
        noise = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"photo{i}.png")
        mask = Image.new("L", size)
        mask.paste(255, (size[0] // 2, 0, *size))
        mask.save(tmp_path / f"mask{i}.png")
    Image.new("L", (50, 40)).save(tmp_path / "black.png")
    return tmp_path


def levels(folder):
    """Of all pictures, in order."""
    return np.concatenate([np.asarray(Image.open(path), dtype=int).ravel() for path in sorted(folder.glob("0*.png"))])


@pytest.mark.slow
def test_images_are_redrawn_at_their_own_sizes(asked, photos):
    images = f"images=['{photos}/photo0.png', '{photos}/photo1.png']"
    few = ["mode=image_to_image", "prior_steps=2", "sampler=ddim", "steps=6", "count=2", "strength=0.5"]
    out = generate(asked(images, "prompts=[a red circle]", *few, out="a"))
    lines = manifest(out)
    assert [line["image"] for line in lines] == [f"{photos}/photo{i}.png" for i in (0, 0, 1, 1)]
    assert [line["size"] for line in lines] == [[50, 40], [50, 40], [24, 33], [24, 33]]
    assert [Image.open(out / line["file"]).size for line in lines] == [(50, 40), (50, 40), (24, 33), (24, 33)]
    assert {(line["strength"], line["prompt"]) for line in lines} == {(0.5, "a red circle")}
    assert [line["seed"] for line in lines] == [0, 1, 2, 3]
    apart = generate(asked(images, "prompts=[a red circle]", *few, "batch_size=1", out="b"))
    assert levels(out) == pytest.approx(levels(apart), abs=1)


def test_the_usual_strength_is_written_down(asked, photos):
    few = ["mode=image_to_image", "prior_steps=2", "steps=4", f"images=['{photos}/photo0.png']"]
    [line] = manifest(generate(asked("prompts=[a red circle]", *few)))
    assert line["strength"] == 0.3


def test_a_mask_decides_the_picture(asked, photos):
    """Gone on with by the same request alone: a mask of the same name that was drawn anew is another."""
    request = ["mode=inpaint", "prior_steps=2", f"images=['{photos}/photo0.png']", f"masks=['{photos}/mask0.png']"]
    cfg = asked("prompts=[a red circle]", *request)
    [line] = manifest(generate(cfg))
    assert (line["image"], line["mask"]) == (f"{photos}/photo0.png", f"{photos}/mask0.png")
    Image.new("L", (50, 40), 255).save(photos / "mask0.png")
    with pytest.raises(ValueError, match="another request, which differs in images_sha256"):
        generate(cfg)


def test_a_prompt_and_a_mask_for_each_image(asked, photos):
    images, masks = ("', '".join(f"{photos}/{name}{i}.png" for i in (0, 1)) for name in ("photo", "mask"))
    files = [f"images=['{images}']", f"masks=['{masks}']"]
    out = generate(asked("mode=inpaint", "prior_steps=2", "prompts=[a red circle, a blue square]", *files))
    assert [(line["prompt"], Path(line["image"]).name, Path(line["mask"]).name) for line in manifest(out)] == [
        ("a red circle", "photo0.png", "mask0.png"),
        ("a blue square", "photo1.png", "mask1.png"),
    ]


def test_a_picture_is_made_larger(asked, photos):
    request = ["mode=outpaint", "prior_steps=2", f"images=['{photos}/photo0.png']", "margins=[8,4,0,3]"]
    [line] = manifest(generate(asked("prompts=[a red circle]", *request)))
    assert line["margins"] == [8, 4, 0, 3] and line["size"] == [62, 43]


@pytest.mark.slow
def test_the_decoders_negative_prompt_decides_the_picture(asked):
    one = generate(asked(out="a"))
    two = generate(asked("negative_decoder_prompt='a blue cross'", out="b"))
    assert manifest(two)[0]["negative_decoder_prompt"] == "a blue cross"
    assert abs(levels(one) - levels(two)).max() > 4


EDIT_MISTAKES = {
    "mode=image_to_image prompts=[a]": "nothing to draw: mode=image_to_image needs images, and prompts",
    "mode=image_to_image images=[{}/photo0.png]": "nothing to draw: mode=image_to_image needs images, and prompts",
    "mode=image_to_image prompts=[a] images=[{}/photo0.png] strength=0": "strength=0: above 0, at most 1",
    "mode=image_to_image prompts=[a] images=[{}/photo0.png] strength=2": "strength=2: above 0, at most 1",
    "mode=image_to_image prompts=[a] images=[{}/photo0.png] strength=nan": "strength=nan: above 0",
    "mode=image_to_image prompts=[a] images=[{}/photo0.png] strength=half": "strength=half: above 0",
    "mode=image_to_image prompts=[a] images=[{}/photo0.png] size=64": "does not read size",
    "mode=image_to_image prompts=[a] images=[{}/photo0.png]": "strength=0.3 of 2 steps is not one step",
    "mode=image_to_image prompts=[a,b,c] images=[{}/photo0.png,{}/photo1.png]": "3 prompts, 2 images: give one",
    "mode=image_to_image prompts=[a] images=[{}/one.png]": "one.png: not a usable image",
    "mode=image_to_image prompts=[a] images=[{}/small.png]": "small.png: a picture of 40x7 pixels: sides are at least",
    "mode=image_to_image prompts=[a] images=[{}/wide.png]": "wide.png: a picture of 20000x8 pixels: sides are at most",
    "mode=variations images=[{}/small.png]": "small.png: a picture of 40x7 pixels: sides are at least",
    "mode=inpaint prompts=[a] images=[{}/photo0.png]": "no masks: nothing to draw; give at least one",
    "mode=inpaint prompts=[a] images=[{}/photo0.png] masks=[gone.png]": "no such picture: 'gone.png'",
    "mode=inpaint prompts=[a] images=[{}/photo0.png] masks=[{}/mask1.png]": "mask1.png: a mask of 24x33 pixels for a",
    "mode=inpaint prompts=[a] images=[{}/photo0.png] masks=[{}/black.png]": "black.png: the mask is nowhere white",
    "mode=outpaint prompts=[a] images=[{}/photo0.png]": "margins=[]: [left, right, top, bottom], four whole numbers",
    "mode=outpaint prompts=[a] images=[{}/photo0.png] margins=8": "margins=8: [left, right, top, bottom]",
    "mode=outpaint prompts=[a] images=[{}/photo0.png] margins=[8,8,-1,0]": "top=-1: a margin is a whole number",
    "mode=outpaint prompts=[a] images=[{}/photo0.png] margins=[0,0,0,0]": "all margins are 0",
    "mode=outpaint prompts=[a] images=[{}/photo0.png] margins=[9000,0,0,0]": "a picture of 9050x40 pixels: sides",
    "mode=interpolate count=3": "nothing to draw: mode=interpolate needs between",
    "mode=interpolate between=[a,b]": "count=1: mode=interpolate draws at least 2 pictures",
    "mode=interpolate between=[a,b,c] count=3": "between=['a', 'b', 'c']: the two ends",
    "mode=mix parts=[a,b] part_weights=[0,0]": "give finite numbers that are not all 0",
    "masks=[{}/mask0.png]": "mode=text_to_image does not read masks",
    "strength=0.3": "mode=text_to_image does not read strength",
}


@pytest.mark.parametrize("typed", EDIT_MISTAKES)
def test_a_mistaken_edit_is_told_and_nothing_is_written(asked, photos, typed):
    Image.new("RGB", (1, 1)).save(photos / "one.png")
    Image.new("RGB", (40, 7)).save(photos / "small.png")
    Image.new("RGB", (20000, 8)).save(photos / "wide.png")
    with pytest.raises(ValueError) as refusal:
        generate(asked(*typed.replace("{}", str(photos)).split()))
    assert EDIT_MISTAKES[typed] in str(refusal.value) and message(refusal.value)
    assert not (photos / "out").exists()


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
    "mode=text_to_imge": "no such choice; did you mean 'text_to_image'? there are: text_to_image, variations, mix",
    "mode=variations images=[gone.png]": "no such picture: 'gone.png'",
    "mode=variations": "nothing to draw: mode=variations needs images",
    "mode=variations images=[a.png] prior_steps=3": "mode=variations does not read prior_steps; it reads images",
    "mode=mix parts=[gone.png] part_weights=[1]": "no such picture: 'gone.png'",
    "mode=mix parts=[a,b] part_weights=[1]": "2 parts but 1 part_weights",
    "mode=mix parts=[a] part_weights=[heavy]": "part_weights: 'heavy' is no number",
    "sampler=dim": "no such sampler; did you mean 'ddim'?",
    "dtype=bf16": "dtype=bf16: no such choice; did you mean 'bfloat16'",
    "offload=true compile=true": "offload and compile: what is compiled keeps its place",
    "size=0": "size=0: a number of pixels or (width, height), each at least 1",
    "size=[64]": "size=[64]: a number of pixels",
    "size=big": "size=big: a number of pixels",
    "count=0": "count=0: a whole number, at least 1",
    "batch_size=0": "batch_size=0: a whole number, at least 1",
    "seed=-1": "seed -1: seeds are from 0",
    "seed=4294967295": "seed 4294967296: seeds are from 0",
    "steps=0": "steps=0: a whole number, at least 1",
    "prior_steps=few": "prior_steps=few: a whole number",
    "steps=1001": "steps=1001: a schedule of 1000 timesteps allows 1 to 1000 steps",
    "scale=high": "scale=high: a finite number",
    "scale=nan": "scale=nan: a finite number",
    "prior_scale=inf": "prior_scale=inf: a finite number",
    "seed=x": "seed=x: a whole number",
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
