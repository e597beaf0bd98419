"""Each page is one well-formed file that needs nothing else, and no text in it is taken for HTML."""

import base64
import json
import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from open_kandinsky.evaluation import figures
from open_kandinsky.evaluation.coco_report import coco_page
from open_kandinsky.evaluation.comparison import comparison_page
from open_kandinsky.evaluation.report import PAGES, number, percent, write_json
from open_kandinsky.evaluation.toy import shapes_page

ROOT = Path(__file__).parents[2]
EVIL = "<script>alert(1)</script>&'\"><img src=x onerror=y>"
VOID = {"meta", "img", "br", "wbr", "link", "hr"}
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


def result(**more):
    """metrics.json of an evaluation on COCO."""
    return {
        "protocol": "coco30k_default",
        "metrics": {"fid": 12.345, "kid": 0.0123, "kid_std": 0.0012, "clip_score_vit_l_14": 0.2612},
        "also": {"coco30k_clean": {"fid": 12.9, "kid": 0.0125, "kid_std": 0.001}},
        "warnings": ["clip cut 3 of 12 captions, 'a cat' first."],
        "prior": "diffusion",
        **{name: "0" * 64 for name in ("protocol_sha256", "images_sha256", "captions_sha256", "coco_sha256")},
        **{"n": 30000, "n_of": 30000, "n_real": 40504},
        "weights_sha256": {"clip": "1" * 64},
        "extractors": {"real": {"name": "inception"}},
        "drawn_with": {"scale": 4.0, "steps": 50, "sampler": "ddim", "quantised_latents": False},
        "seeds": [0, 29999],
        "versions": {"torch": "2.5.0"},
        "made": {"commit": "0123abcd4567", "machines": ["a processor, 2 threads"]},
    } | more


def shown(**more):
    curves = [figures.curves({name: ([0, 1], [2.0, 1.0])}, name) for name in ("CLIP's loss", "decoder's loss")]
    return shapes_page(report(**more), PNG, curves)


def compared(**more):
    runs = {name: result(**more) for name in ("run", "other")}
    runs["other"]["drawn_with"] |= {"scale": 8.0}
    return comparison_page(runs)


PAGES_SHOWN = {"shapes": shown, "coco": lambda: coco_page(result(), PNG, PNG), "comparison": compared}


def test_the_page_is_well_formed_and_has_every_section():
    html = shown()
    reader = Reader(html)
    assert html.startswith("<!DOCTYPE html>") and reader.tags.count("html") == reader.tags.count("h1") == 1
    assert reader.tags.count("h2") == 8 and reader.tags.count("svg") == 3 and reader.tags.count("img") == 1


@pytest.mark.parametrize(("name", "sections", "svgs", "images"), [("coco", 5, 0, 2), ("comparison", 3, 1, 0)])
def test_the_other_pages_are_too(name, sections, svgs, images):
    html = PAGES_SHOWN[name]()
    reader = Reader(html)
    assert html.startswith("<!DOCTYPE html>") and reader.tags.count("html") == reader.tags.count("h1") == 1
    assert [reader.tags.count(tag) for tag in ("h2", "svg", "img")] == [sections, svgs, images]


@pytest.mark.parametrize("name", PAGES_SHOWN)
def test_the_page_asks_for_nothing_outside_itself(name):
    html = re.sub(r'xmlns(:\w+)?="[^"]*"', "", PAGES_SHOWN[name]())
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


def test_the_coco_page_shows_the_values():
    text = Reader(coco_page(result(), PNG, None)).text
    for value in ("30,000 pictures", "12.35", "0.0012", "0.555", "coco30k_clean", "arXiv 2310.03502", "0123abcd4567"):
        assert value in text
    assert "Published" not in Reader(coco_page(result(metrics={"frechet_distance": 1.0}, also={}), PNG, None)).text


def evil(values):
    """The same values with EVIL before each text."""
    if isinstance(values, dict):
        return {key: evil(value) for key, value in values.items()}
    if isinstance(values, list):
        return [evil(value) for value in values]
    return f"{EVIL} {values}" if isinstance(values, str) else values


def assert_text_only(html, *, texts, images):
    """EVIL is shown in so many pieces of text, and nothing of it is a tag or an attribute."""
    reader = Reader(html)
    assert "script" not in reader.tags and "onerror" not in dict(reader.attributes)
    assert reader.tags.count("img") == images and "<script>alert(1)" not in html
    assert sum(EVIL in words for words in reader.words) == texts


def test_words_are_never_taken_for_html():
    names = {"accuracy": {EVIL: accuracy(1)}, "priors": {EVIL: prior()}, "versions": {EVIL: EVIL}}
    times = {"seconds": {EVIL: 1.0}, "parts": {EVIL: "a part"}}
    curve = figures.curves({EVIL: ([0], [1.0]), "other": ([0], [1.0])}, EVIL)
    assert_text_only(shapes_page(evil(report(**names, **times)), PNG, [curve]), texts=12, images=1)


def test_a_caption_in_a_warning_is_never_taken_for_html():
    names = {"also": {EVIL: {EVIL: 1.0}}, "weights_sha256": {EVIL: EVIL}, "extractors": {EVIL: {EVIL: EVIL}}}
    html = coco_page(evil(result(warnings=[f"clip cut 1 of 12 captions, {EVIL} first."], **names)), PNG, PNG)
    assert_text_only(html, texts=19, images=2)


def test_names_of_compared_runs_are_never_taken_for_html():
    runs = {EVIL: evil(result()), f"{EVIL} 2": evil(result(drawn_with=result()["drawn_with"] | {"scale": 8.0}))}
    assert_text_only(comparison_page(runs), texts=4, images=0)  # two names, what is the same in both, a curve's legend
    alone = {EVIL: result(metrics={EVIL: 1.0, "fid": 2.0})}
    assert_text_only(comparison_page(alone), texts=3, images=0)  # its name in both tables, a metric's


def part(name, *values, **named):
    """One macro of templates/parts.html."""
    return getattr(PAGES.get_template("parts.html").module, name)(*values, **named)


def test_parts_of_a_page_escape_what_they_are_given():
    html = part("table", [EVIL], [[EVIL]], caption=EVIL) + part("picture", PNG, EVIL, EVIL)
    html += part("drawing", "<svg></svg>", caption=EVIL)
    reader = Reader(html)
    assert "script" not in reader.tags and reader.tags.count("img") == reader.tags.count("svg") == 1
    assert ("alt", EVIL) in reader.attributes and [words for words in reader.words if words.strip()] == 5 * [EVIL]


@pytest.mark.parametrize(("name", "error"), [("clip_score", UndefinedError), ("accuracy", KeyError)])
def test_a_report_that_lacks_something_names_it(name, error):
    lacking = report()
    del lacking[name]
    with pytest.raises(error, match=name):
        shapes_page(lacking, PNG, [])


def test_a_picture_is_inside_the_page():
    assert f'src="data:image/png;base64,{base64.b64encode(PNG).decode()}"' in part("picture", PNG, "a", "b")


def test_columns_of_figures_are_flush_right_and_words_are_not():
    rows = [["a", "1.5 ± 0.2 %", "2 of them"], ["b", "–", "none"], ["c", "-3", "4"]]
    assert part("table", ["name", "value", "note"], rows).count('class="number"') == 4


def test_a_heading_breaks_behind_each_underscore():
    html = part("table", ["clip_score_<b>"], [["clip_score"]])
    assert "<th>clip_<wbr>score_<wbr>&lt;b&gt;</th>" in html and "<td>clip_score</td>" in html


@pytest.mark.slow
def test_the_wheel_holds_the_templates(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = {name.rpartition("/")[2] for name in wheel.namelist() if "/evaluation/templates/" in name}
    assert held == set(PAGES.list_templates()) >= {"page.html", "parts.html", "shapes.html"}


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
