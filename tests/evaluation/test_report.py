"""The page is one well-formed file that needs nothing else, and no text in it is taken for HTML."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest

from open_kandinsky.evaluation import figures
from open_kandinsky.evaluation.report import (
    Section,
    figure,
    number,
    page,
    paragraph,
    percent,
    picture,
    shapes_page,
    table,
    write_json,
)

EVIL = '<script>alert("x")</script>&\'"><img src=x onerror=y>'
VOID = {"meta", "img", "br", "link", "hr"}
PNG = b"\x89PNG not really"


class Reader(HTMLParser):
    """Fails on a tag that does not close; keeps tags, attributes and text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"{self.open} are left open"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def accuracy(all_):
    return {
        "count": 0.98,
        "shape": 0.91,
        "all": all_,
        "all_se": 0.026,
        "all_single": 0.931,
        "all_pair": 0.747,
        "n": 192,
    }


def prior(**more):
    shares = {"accuracy_seen": 0.84, "accuracy_seen_se": 0.026, "accuracy_unseen": 0.8, "accuracy_unseen_se": 0.029}
    figures = {"cosine_to_image": 0.951, "frechet_distance": 0.0312, "clip_score": 0.93, "parameters": 281234}
    return shares | figures | more


def report(**more):
    return {
        "caption_accuracy": 0.8437,
        "caption_accuracy_heldout": 0.792,
        "caption_accuracy_never": 0.542,
        "caption_accuracy_no_guidance": 0.703,
        "accuracy": {"seen": accuracy(0.8437), "unseen": accuracy(0.792)},
        "oracle_real": 1.0,
        "oracle_reconstruction": 0.943,
        "oracle": {"oracle_real": {"seen": 1.0}, "oracle_reconstruction": {"seen": 0.943, "unseen": 0.803}},
        "reconstruction": {"psnr": 27.31, "ssim": 0.951, "l1": 0.0182, "code_usage": 0.61},
        "priors": {"diffusion": prior(seconds=18.2), "none": prior()},
        "text_cosine_to_image": 0.9434,
        "clip_score": 0.9312,
        "frechet_distance": 0.0312,
        "seconds": {"clip": 64.2, "decoder": 256.0},
        "parts": {"clip": "which caption goes with which picture", "decoder": "embedding to latent"},
        "peak_memory_gb": 1.66,
        "commit": "0123abcd4567",
        "versions": {"torch": "2.5.0"},
        "machine": "a processor, 2 threads",
        "seed": 7,
        "command": "make quickstart",
    } | more


def shown(**more):
    curves = {name: figures.curves({name: ([0, 1], [2.0, 1.0])}, name) for name in ("CLIP's loss", "decoder's loss")}
    return shapes_page(report(**more), PNG, curves)


def test_the_page_is_well_formed_and_has_every_section():
    html = shown()
    reader = Reader(html)
    assert html.startswith("<!DOCTYPE html>") and reader.tags.count("html") == reader.tags.count("h1") == 1
    assert reader.tags.count("h2") == 8 and reader.tags.count("svg") == 3 and reader.tags.count("img") == 1


def test_the_page_asks_for_nothing_outside_itself():
    html = re.sub(r'xmlns(:\w+)?="[^"]*"', "", shown())
    assert "http:" not in html and "https:" not in html and "url(//" not in html
    reader = Reader(html)
    assert not {"script", "link", "iframe"} & set(reader.tags)
    assert all(value.startswith(("data:", "#")) for name, value in reader.attributes if name in ("src", "xlink:href"))


def test_the_page_shows_the_values():
    text = Reader(shown()).text
    for value in ("84.4 ± 2.6 %", "79.2 %", "70.3 %", "93.1 %", "74.7 %", "27.31 dB", "0.9434", "281,234", "80.3 %"):
        assert value in text
    for value in (
        "5 min 20 s in all",
        "1.7 GB",
        "0123abcd4567",
        "torch 2.5.0",
        "make quickstart",
        "embedding to latent",
    ):
        assert value in text


def test_the_page_says_what_its_numbers_are_worth():
    text = Reader(shown()).text
    assert "toy results" in text and "is not FID" in text and "No ranking is claimed" in text


def test_words_are_never_taken_for_html():
    html = shown(command=EVIL, commit=EVIL, parts={"clip": EVIL}, priors={EVIL: prior()}, seconds={EVIL: 1.0})
    reader = Reader(html)
    assert "script" not in reader.tags and reader.tags.count("img") == 1 and EVIL in reader.text
    parts = [Section(EVIL, paragraph(EVIL) + table([EVIL], [[EVIL]], caption=EVIL) + figure(picture(PNG, EVIL), EVIL))]
    reader = Reader(page(EVIL, parts))
    assert "script" not in reader.tags and reader.tags.count("img") == 1
    assert ("alt", EVIL) in reader.attributes and reader.words.count(EVIL) == 8


def test_a_report_that_lacks_something_names_it():
    lacking = report()
    del lacking["clip_score"]
    with pytest.raises(KeyError, match="clip_score"):
        shapes_page(lacking, PNG, {})


def test_a_picture_is_inside_the_page():
    assert base64.b64encode(PNG).decode() in picture(PNG, "a picture")


def test_columns_of_figures_are_flush_right_and_words_are_not():
    html = table(["name", "value", "note"], [["a", "1.5 ± 0.2 %", "2 of them"], ["b", "–", "none"], ["c", "-3", "4"]])
    assert html.count('class="figure"') == 4


def test_numbers_are_said_shortly():
    assert [number(x) for x in (0.93124, 281234, 192.0, 0, None, float("nan"), float("inf"))] == [
        *("0.9312", "281,234", "192", "0", "–", "–", "inf")
    ]
    assert [percent(x) for x in (1.0, None, float("nan"))] == ["100.0 %", "–", "–"]
    assert percent(0.5, float("nan")) == "50.0 %"


def test_json_is_read_back_and_has_null_for_what_is_not_finite(tmp_path):
    path = tmp_path / "folder" / "report.json"
    write_json(path, {"a": 1.5, "b": [float("nan"), 2], "c": {"d": float("inf")}})
    assert json.loads(path.read_text()) == {"a": 1.5, "b": [None, 2], "c": {"d": None}}


def test_what_json_cannot_say_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]
